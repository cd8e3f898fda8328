"""Samples of a source as tokens: enough of them, none too short, not all alike."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from statistics import median
from typing import Any

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.model.data.packing import packed
from inc_mp_plugin.model.data.samples import Conversation, Sample, read_samples, samples_of
from inc_mp_plugin.model.data.segments import segments
from inc_mp_plugin.model.data.shape import BatchShape
from inc_mp_plugin.model.data.source import DataSource, Excerpt
from inc_mp_plugin.model.data.tokens import Tokens, tokenize
from inc_mp_plugin.runtime.progress import warn

_SHORT = 8  # samples with an eighth of the tokens they could have are worth a line


def read_tokens(tokenizer: Any, excerpt: Excerpt, shape: BatchShape) -> list[Tokens]:
    """Read samples as tokens, joined or each cut to the sequence length.

    Args:
        tokenizer: of transformers.
        excerpt: the samples.
        shape: of the batches.

    Raises:
        InputError: the samples cannot be read, are too few or too short, or are all the same.
    """
    if shape.pack:
        tokens = _packed(tokenizer, excerpt, shape)[0]
    else:
        texts = read_samples(excerpt)
        tokens = [_tokens(tokenizer, *text, shape) for text in texts.items()]
    _check(excerpt.source, shape, tokens)
    return tokens


def documents(tokenizer: Any, excerpt: Excerpt, shape: BatchShape) -> dict[str, Sample]:
    """Read the texts of samples by their places; joined samples come with the texts of those before them.

    Args:
        tokenizer: of transformers; used for texts that are joined.
        excerpt: the samples.
        shape: of the batches.

    Raises:
        InputError: the samples cannot be read, or are too few.
    """
    return _packed(tokenizer, excerpt, shape)[1] if shape.pack else read_samples(excerpt)


def _packed(tokenizer: Any, excerpt: Excerpt, shape: BatchShape) -> tuple[list[Tokens], dict[str, Sample]]:
    """Read joined samples, and the texts that they and those before them took."""
    taken: dict[str, Sample] = {}

    def texts() -> Iterator[Tokens]:
        for place, sample in samples_of(excerpt.source):
            if isinstance(sample, Conversation) and sample.images:
                message = f"{place}: pack: true joins texts, and this sample has an image; give pack: false"
                raise InputError(message)
            taken[place] = sample
            yield _tokens(tokenizer, place, sample, shape)

    read = list(islice(packed(texts(), shape.sequence_length), excerpt.stop))
    if len(read) < excerpt.stop:
        message = (
            f"the {len(taken)} texts of {excerpt.source.path} fill {len(read)} samples of "
            f"{shape.sequence_length} tokens, {excerpt.stop} are asked for; give more, or ask for fewer"
        )
        raise InputError(message)
    return read[excerpt.skip :], taken


def _tokens(tokenizer: Any, place: str, sample: Sample, shape: BatchShape) -> Tokens:
    parts = segments(tokenizer, place, sample, shape.labels)
    length = None if shape.pack else shape.sequence_length
    return tokenize(tokenizer, place, parts, length, rendered=isinstance(sample, Conversation))


def _check(source: DataSource, shape: BatchShape, tokens: list[Tokens]) -> None:
    """Refuse samples without a loss, and samples that are all the same; tell of short ones and repeats."""
    short = [text.place for text in tokens if len(text.ids) < 2]
    start = f"of {len(tokens)} samples of {source.path}"
    if short:
        message = (
            f"{len(short)} {start} have fewer than two tokens, the first at {short[0]}; leave them out, or "
            "give pack: true, which joins texts"
        )
        raise InputError(message)
    unanswered = [text.place for text in tokens if not any(text.counts[1:])]
    if unanswered:
        message = (
            f"{len(unanswered)} {start} have no token of an answer within {shape.sequence_length} tokens, "
            f"the first at {unanswered[0]}; give a longer sequence_length, or leave them out"
        )
        raise InputError(message)
    different = len({text.ids for text in tokens})
    if different == 1 < len(tokens):
        message = (
            f"all {len(tokens)} samples of {source.path} are the same within {shape.sequence_length} "
            "tokens; give samples that differ, or a longer sequence_length"
        )
        raise InputError(message)
    if different < len(tokens):
        warn(f"{len(tokens) - different} {start} repeat another one within {shape.sequence_length} tokens.")
    middle = int(median(len(text.ids) for text in tokens))
    if middle * _SHORT < shape.sequence_length:
        warn(
            f"Half {start} have at most {middle} tokens, of {shape.sequence_length} that they could have; "
            "pack: true joins texts to full length."
        )
