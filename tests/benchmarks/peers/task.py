"""What every peer gets: the same model, the same tokens, the same groups, the same memory to gain."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

FORMAT = "fp8_e4m3"
SHARES = (0.20, 0.35, 0.50, 0.65, 0.80, 0.90)
FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
GROUPINGS = ("op", "fused")

Groups = dict[str, tuple[str, ...]]


def groups_of(ops: Iterable[str], grouping: str) -> Groups:
    """Group ops: each by itself ("op"), or those together that runtimes fuse ("fused")."""
    fused = {leaf: name for name, leaves in FUSED.items() for leaf in leaves} if grouping == "fused" else {}
    groups: dict[str, list[str]] = {}
    for op in ops:
        parent, _, leaf = op.rpartition(".")
        groups.setdefault(f"{parent}.{fused.get(leaf, leaf)}", []).append(op)
    return {name: tuple(members) for name, members in groups.items()}


def summed(groups: Groups, scores: Mapping[str, float]) -> dict[str, float]:
    """Score groups by the sum over their ops, as ModelOpt and AutoRound do."""
    return {name: sum(scores[op] for op in members) for name, members in groups.items()}


@dataclass(frozen=True)
class Task:
    """The model, the calibration samples, and the ops to choose from.

    `texts` is a file of JSON lines that holds the texts of `rows`, for peers that tokenize themselves.
    `elements` counts the weight elements of the ops that may be lowered; `others` those of linear ops that
    stay as they are (the head). `shares` of the memory that all ops together gain are to be gained.
    """

    model: str
    texts: str
    rows: Sequence[Sequence[int]]
    batch_size: int
    elements: Mapping[str, int]
    others: int
    shares: Sequence[float] = SHARES

    @property
    def total(self) -> int:
        """The weight elements of all ops that may be lowered."""
        return sum(self.elements.values())

    def save(self, path: Path) -> None:
        """Write it for a peer's process."""
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> Task:
        """Read what `save` wrote."""
        return cls(**json.loads(path.read_text()))


def key(share: float) -> str:
    """Name a share of the memory, as a key of JSON."""
    return f"{share:.2f}"
