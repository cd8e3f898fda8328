"""Tokens of samples, each with the mark if the loss is of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.model.data.segments import Segment


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens of one sample.

    Attributes:
        place: of the sample, for messages.
        ids: numbers in the vocabulary.
        counts: for each token, if the loss is of it.
        positions: of each token in its own text, where several texts are joined; else empty.
    """

    place: str
    ids: tuple[int, ...]
    counts: tuple[bool, ...]
    positions: tuple[int, ...] = ()


def tokenize(
    tokenizer: Any, place: str, parts: Sequence[Segment], length: int | None, *, rendered: bool = False
) -> Tokens:
    """Tokenize the segments of a text together, and cut them to a length.

    A chat template writes the tokens that begin and end texts itself; a second one at the beginning would
    take the massive activations of the first.

    Args:
        tokenizer: of transformers.
        place: of the sample.
        parts: segments of its text.
        length: most tokens; None for all.
        rendered: the text comes of a chat template; so does one that begins as texts begin.

    Raises:
        InputError: the loss is of some segments alone, and the tokenizer does not tell where its tokens lie.
    """
    text = "".join(part.text for part in parts)
    rendered = rendered or (bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token))
    partial = not all(part.counts for part in parts)
    if partial and not tokenizer.is_fast:
        message = (
            f"labels: answers needs a tokenizer that tells where its tokens lie, and "
            f"{tokenizer.name_or_path!r} is a slow one; give labels: all"
        )
        raise InputError(message)
    encoded = tokenizer(
        text,
        truncation=length is not None,
        max_length=length,
        add_special_tokens=not rendered,
        return_offsets_mapping=partial,
        verbose=False,
    )
    ids = tuple(encoded["input_ids"])
    counts = tuple(_counts(encoded["offset_mapping"], parts)) if partial else (True,) * len(ids)
    return Tokens(place, ids, counts)


def _counts(offsets: Sequence[tuple[int, int]], parts: Sequence[Segment]) -> list[bool]:
    """Mark the tokens that begin in a segment that counts; special tokens have no text, and do not."""
    marks = [part.counts for part in parts for _ in part.text]
    return [start < end and marks[start] for start, end in offsets]
