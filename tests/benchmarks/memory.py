"""Memory and time of a sensitivity pass through a generated Llama, in `memory: low` and `high`.

    python tests/benchmarks/memory.py --layers 4 12 --hidden 2048

The model lies in a safetensors file in BF16, from which transformers maps the weights: they are no anonymous
memory (`RssAnon` of /proc/self/status), whose peak is shown, beside what was there before plus the estimate
of `inc-mp tune --dry-run`. Each line is a process of its own.
`--memory disk` is `low` with all weights offloaded to their file by accelerate, as `run: {device_map: auto}`
does with what fits nowhere else.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

import inc_mp_plugin as mp
from inc_mp_plugin.core.estimate import Estimate
from inc_mp_plugin.core.footprint import footprint

FP8 = {"scales": mp.Scales("maxabs_arbitrary", "cpu"), "formats": ("fp8_e4m3",)}


def anonymous_gb() -> float:
    """Read the anonymous memory of this process, GB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024 / 1e9


class Peak:
    """The most anonymous memory inside of a `with`, GB, looked at every 5 ms."""

    def __enter__(self) -> Peak:
        self.gb, self._on = 0.0, True
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._on = False
        self._thread.join()

    def _look(self) -> None:
        while self._on:
            self.gb = max(self.gb, anonymous_gb())
            time.sleep(0.005)


def write(folder: Path, layers: int, options: argparse.Namespace) -> None:
    """Write a Llama of random weights in shards, one of them in memory at a time."""
    hidden = options.hidden
    config = LlamaConfig(
        vocab_size=options.vocabulary,
        hidden_size=hidden,
        intermediate_size=hidden * 7 // 2,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 128,
        num_key_value_heads=max(1, hidden // 512),
        max_position_embeddings=8192,
        tie_word_embeddings=False,
        dtype="bfloat16",
    )
    config.save_pretrained(folder)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in LlamaForCausalLM(config).state_dict().items()}
    shards = defaultdict(dict)
    for name, shape in shapes.items():
        part = name.partition(".layers.")[2].partition(".")[0] or name
        shards[f"model-{part}.safetensors"][name] = shape
    generator = torch.Generator().manual_seed(0)
    for file, part in shards.items():
        tensors = {name: random_weight(shape, generator) for name, shape in part.items()}
        save_file(tensors, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, part in shards.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def random_weight(shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Draw a weight in BF16 as transformers would; those of norms are ones."""
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    return torch.empty(shape, dtype=torch.bfloat16).normal_(std=0.02, generator=generator)


def measure(folder: Path, memory: str, options: argparse.Namespace) -> None:
    """Measure one model in this process, and print the outcome as JSON."""
    torch.set_num_threads(options.threads)
    places = {"device_map": "auto", "max_memory": {"cpu": 0}} if memory == "disk" else {}
    settings = {"dtype": torch.bfloat16, "attn_implementation": "eager", **places}
    model = LlamaForCausalLM.from_pretrained(folder, **settings).eval()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, options.vocabulary, (options.samples, options.tokens), generator=generator)
    batches = [{"input_ids": ids}]
    graph = mp.capture(model, batches[0])
    noise = FP8 if options.noise == "measured" else {}
    before, start = anonymous_gb(), time.perf_counter()
    with Peak() as peak:
        result = mp.measure_sensitivity(
            model,
            graph,
            batches,
            yardstick="kl",
            estimate=Estimate("batch"),
            memory=memory.replace("disk", "low"),
            **noise,
        )
    seconds = time.perf_counter() - start
    total = float(np.sum(result.input) + np.sum(result.weight))
    needed = footprint(graph, 2)
    estimate = before + (needed.high if memory == "high" else needed.low) / 1e9
    row = {"before": before, "peak": peak.gb, "estimate": estimate, "seconds": seconds, "total": total}
    print(json.dumps(row))


def main() -> None:
    """Print a line per number of layers and mode."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 12])
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--noise", choices=["uniform", "measured"], default="measured")
    parser.add_argument("--memory", nargs="+", default=["low", "high"])
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        measure(Path(options.child[0]), options.child[1], options)
        return
    print("layers  memory  weights, GB  before, GB  peak, GB  estimated  seconds  sum of sensitivities")
    for layers in options.layers:
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), layers, options)
            gb = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors")) / 1e9
            for memory in options.memory:
                command = [sys.executable, *sys.argv, "--child", folder, memory]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                row = json.loads(done.stdout.splitlines()[-1])
                print(
                    f"{layers:6}  {memory:6}  {gb:11.2f}  {row['before']:10.2f}  {row['peak']:8.2f}"
                    f"  {row['estimate']:9.2f}  {row['seconds']:7.1f}  {row['total']:.6e}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
