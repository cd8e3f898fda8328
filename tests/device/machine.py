"""The device, what is known of it, and the frame that every part runs in."""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import time
from pathlib import Path

import numpy
import torch
import transformers

# Dense peaks in TFLOP/s and bandwidth in TB/s, from the data sheets of the SXM boards.
PEAKS = {
    "H100": {"bf16": 989.4, "fp8": 1978.9, "memory": 3.35},
    "H200": {"bf16": 989.4, "fp8": 1978.9, "memory": 4.8},
}


def describe(cpu: bool) -> dict[str, object]:
    """Device, versions, date and peaks, for the results."""
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    versions |= {"numpy": numpy.__version__, "transformers": transformers.__version__}
    date = datetime.date.today().isoformat()
    if cpu:
        return {"device": "cpu", "date": date, "versions": versions, "peaks": None}
    if not torch.cuda.is_available():
        message = "torch finds no CUDA device here; --cpu rehearses without one"
        raise SystemExit(message)
    name = torch.cuda.get_device_name()
    peaks = next((peaks for key, peaks in PEAKS.items() if key in name), None)
    properties = torch.cuda.get_device_properties(0)
    memory = {"gib": round(properties.total_memory / 2**30, 1), "l2_mib": properties.L2_cache_size / 2**20}
    return {"device": name, "date": date, "versions": versions, "peaks": peaks, "memory": memory}


class Part:
    """A part that is running: its device, its deadline, and the file (`path`) that it writes as it goes."""

    def __init__(self) -> None:
        """Read the options that `experiment` gives."""
        parser = argparse.ArgumentParser()
        parser.add_argument("--out", type=Path, required=True)
        parser.add_argument("--limit-s", type=float, required=True)
        parser.add_argument("--cpu", action="store_true")
        options = parser.parse_args()
        self.cpu: bool = options.cpu
        self.device = torch.device("cpu" if options.cpu else "cuda")
        self.path, self._ends = options.out, time.monotonic() + options.limit_s
        self.content: dict[str, object] = {}

    @property
    def left_s(self) -> float:
        """Seconds until this part has to end."""
        return self._ends - time.monotonic()

    def save(self) -> None:
        """Write what there is."""
        aside = self.path.with_suffix(".new")
        aside.write_text(json.dumps(self.content, indent=1), encoding="utf-8")
        aside.replace(self.path)
