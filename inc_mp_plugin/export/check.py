"""The check of a checkpoint before a server loads it: files, sums, settings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from inc_mp_plugin.core.errors import InputError, few
from inc_mp_plugin.export.checkpoint import read_config, read_tensors
from inc_mp_plugin.export.folder import CHECKSUMS
from inc_mp_plugin.export.rules import Facts, faults_of
from inc_mp_plugin.export.schemes import Settings
from inc_mp_plugin.runtime.store import file_fingerprint


@dataclass(frozen=True, slots=True)
class CheckpointReport:
    """Findings about a checkpoint: a line of summary, and its faults."""

    summary: str
    faults: tuple[str, ...]


def check_checkpoint(folder: Path) -> CheckpointReport:
    """Check a folder of compressed-tensors against the rules of vLLM; nothing of the weights is loaded.

    With SHA256SUMS in the folder every file is read once, and compared.

    Args:
        folder: of the checkpoint.

    Raises:
        InputError: there is no config.json, or it is of another kind of quantization, or of none.
    """
    settings = Settings.of(read_config(folder), str(folder))
    tensors, faults = read_tensors(folder)
    facts = Facts(tensors, settings)
    if not faults:  # without all tensors, what is left would look wrong everywhere
        faults += faults_of(facts)
    faults += _changed(folder)
    summary = (
        f"{folder}: {len(facts.quantized)} quantized modules, {len(settings.ignore)} entries in ignore, "
        f"{len(tensors)} tensors"
    )
    return CheckpointReport(summary, tuple(faults))


def _changed(folder: Path) -> Iterator[str]:
    """Yield what differs from the sums of the folder, if it has any."""
    path = folder / CHECKSUMS
    if not path.exists():
        return
    missing, others = [], []
    for line in path.read_text(encoding="utf-8").splitlines():
        digest, _, name = line.partition("  ")
        if not (folder / name).is_file():
            missing.append(name)
            continue
        try:
            same = file_fingerprint(folder / name) == digest
        except InputError:
            same = False
        if not same:
            others.append(name)
    if missing:
        yield f"{CHECKSUMS} names files that are missing: {few(missing)}"
    if others:
        yield f"not what was written, by {CHECKSUMS}: {few(others)}"
