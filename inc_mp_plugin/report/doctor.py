"""The state of an installation: versions, what is missing for which feature, and the machine."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence

from inc_mp_plugin.report.blocks import Table
from inc_mp_plugin.runtime.machine import Machine
from inc_mp_plugin.runtime.packages import PLUGIN, Requirement, fault

_SHOWN = ("torch", "neural-compressor", "transformers", "optimum-habana", "highspy")
_FEATURES = {  # by the extra that brings them
    "": "plans of a folder: solve, explain, diff, frontier",
    "inc": "measuring, and INC: tune, validate, emit, check, INC scripts",
    "hf": "models of transformers, by name or folder",
    "report": "the figures of a report",
    "data": "samples in parquet, CSV or on a hub",
    "eval": "accuracy on tasks: experiment DIR accuracy",
    "gaudi": "optimum-habana's models, on a Gaudi",
}


def versions_table(installed: Callable[[str], str | None]) -> Table:
    """Make the table of versions.

    Args:
        installed: gives the version of a package, None without it.
    """
    rows = [("python", platform.python_version())]
    rows += [(name, installed(name) or "-") for name in (PLUGIN, *_SHOWN)]
    return Table("", ("package", "version"), tuple(rows), left=2)


def features_table(needed: Sequence[Requirement], installed: Callable[[str], str | None]) -> Table:
    """Make the table of features: there, or what is missing and the command that brings it.

    Args:
        needed: by the plugin.
        installed: gives the version of a package, None without it.
    """
    rows = []
    for extra, feature in _FEATURES.items():
        own = [requirement for requirement in needed if requirement.extra == extra]
        faults = [text for r in own if (text := fault(r, installed(r.name)))]
        if not own:
            continue
        name = f"{PLUGIN}[{extra}]" if extra else PLUGIN
        rows.append((feature, "; ".join(faults) or "there", f"pip install '{name}'" if faults else ""))
    return Table("", ("feature", "state", "brought by"), tuple(rows), left=3)


def machine_lines(machine: Machine, inc_device: str) -> list[str]:
    """Describe the machine in a line each.

    Args:
        machine: to describe.
        inc_device: where INC would run, in words.
    """
    memory = "unknown" if machine.free_memory is None else f"{machine.free_memory / 1e9:.1f} GB"
    sets = ", ".join(machine.instruction_sets) or "none that is known"
    bf16 = any(name in machine.instruction_sets for name in ("avx512_bf16", "amx_bf16", "bf16"))
    products = "" if bf16 else "; without BF16 instructions, BF16 products may be slower than FP32 ones"
    return [
        f"INC: {inc_device}.",
        f"Cores: {machine.cores}. Instruction sets: {sets}{products}.",
        f"Free: {memory} of memory, {machine.free_disk / 1e9:.1f} GB of disk here.",
    ]
