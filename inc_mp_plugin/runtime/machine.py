"""The machine, as far as it decides how fast a model runs here and whether it fits."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from inc_mp_plugin.runtime.disk import free_on_disk
from inc_mp_plugin.runtime.free_memory import free_memory

# Those that products of matrices run on in torch, as Linux names them: x86, then ARM.
_SETS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_fp16", "asimd", "bf16", "sve")


@dataclass(frozen=True, slots=True)
class Machine:
    """Cores that this process may use, instruction sets, and free bytes; None where Linux does not say."""

    cores: int
    instruction_sets: tuple[str, ...]
    free_memory: int | None
    free_disk: int


def this_machine(folder: Path, root: Path = Path("/")) -> Machine:
    """Describe the machine that this runs on.

    Args:
        folder: whose disk counts.
        root: folder of `proc` and `sys`.
    """
    cpuinfo = root / "proc/cpuinfo"
    text = cpuinfo.read_text(encoding="utf-8") if cpuinfo.exists() else ""
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    known = set(flags[1].split()) if flags else set()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Machine(cores, tuple(s for s in _SETS if s in known), free_memory(root), free_on_disk(folder))
