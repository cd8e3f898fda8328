"""The shape of batches, and what their loss is of."""

from __future__ import annotations

from dataclasses import dataclass

from inc_mp_plugin.core.literals import Labels


@dataclass(frozen=True, slots=True)
class BatchShape:
    """The shape of batches.

    Attributes:
        sequence_length: most tokens of a sample.
        batch_size: samples per batch; the last batch may have fewer.
        pack: join texts, so that every sample has all its tokens.
        labels: "all" tokens have a loss, or those of "answers" alone.
    """

    sequence_length: int
    batch_size: int
    pack: bool = False
    labels: Labels = "all"
