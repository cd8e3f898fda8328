"""Samples as batches: tokens in tensors, padded, and checked against the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.model.data.reading import read_tokens
from inc_mp_plugin.model.losses import IGNORED_LABEL

if TYPE_CHECKING:
    from torch import Tensor

    from inc_mp_plugin.model.data.shape import BatchShape
    from inc_mp_plugin.model.data.source import Excerpt
    from inc_mp_plugin.model.data.tokens import Tokens


def text_batches(config: Any, tokenizer: Any, excerpt: Excerpt, shape: BatchShape) -> list[dict[str, Any]]:
    """Tokenize samples into batches for a causal language model, padded on the right.

    Args:
        config: configuration of the model.
        tokenizer: of transformers.
        excerpt: the samples.
        shape: of the batches.

    Raises:
        InputError: the samples cannot be read, are too few or too short or all the same; the model's context
            is shorter than the sequence length, or it does not know all tokens.
    """
    check_context(config, shape.sequence_length)
    tokens = read_tokens(tokenizer, excerpt, shape)
    check_vocabulary(config, tokenizer, max(max(text.ids) for text in tokens))
    return [_batch(part, tokenizer.pad_token_id or 0, shape) for part in _parts(tokens, shape.batch_size)]


def _batch(texts: Sequence[Tokens], padding: int, shape: BatchShape) -> dict[str, Any]:
    """Make one batch; joined texts have positions instead of a mask, and models tell them apart by these."""
    batch = {"input_ids": padded([text.ids for text in texts], padding)}
    if shape.pack:
        batch["position_ids"] = padded([text.positions for text in texts], 0)
    else:
        batch["attention_mask"] = padded([(1,) * len(text.ids) for text in texts], 0)
    if shape.labels == "answers":
        batch["labels"] = padded([_labels(text) for text in texts], IGNORED_LABEL)
    return batch


def _labels(text: Tokens) -> list[int]:
    """Return the tokens that the loss is of; the first of a joined text is predicted from none of its own."""
    positions = text.positions or range(len(text.ids))
    places = zip(text.ids, text.counts, positions, strict=True)
    return [token if counts and position else IGNORED_LABEL for token, counts, position in places]


def _parts(tokens: Sequence[Tokens], size: int) -> Iterator[Sequence[Tokens]]:
    return (tokens[start : start + size] for start in range(0, len(tokens), size))


def padded(rows: Sequence[Sequence[int]], padding: int) -> Tensor:
    """Put rows of numbers into a tensor, filled up on the right."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=padding)


def check_vocabulary(config: Any, tokenizer: Any, largest: int) -> None:
    """Check that a model knows the tokens of its tokenizer.

    Args:
        config: configuration of the model.
        tokenizer: of transformers.
        largest: the largest token of the samples.

    Raises:
        InputError: it does not.
    """
    vocabulary = config.get_text_config().vocab_size
    if largest >= vocabulary:
        message = (
            f"the tokenizer {tokenizer.name_or_path!r} gives token {largest}, but the model knows "
            f"{vocabulary} tokens; give its own tokenizer"
        )
        raise InputError(message)


def check_context(config: Any, sequence_length: int) -> None:
    """Check that samples fit into the context of a model.

    Raises:
        InputError: they do not.
    """
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    if context is not None and sequence_length > context:
        message = (
            f"calibration.sequence_length is {sequence_length}, but the model's context is "
            f"{context} tokens; give at most that"
        )
        raise InputError(message)
