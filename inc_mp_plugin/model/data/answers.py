"""Prompts and answers as batches for an encoder-decoder model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.model.data.batches import check_context, check_vocabulary, padded
from inc_mp_plugin.model.data.samples import Completion, read_samples
from inc_mp_plugin.model.losses import IGNORED_LABEL

if TYPE_CHECKING:
    from inc_mp_plugin.model.data.shape import BatchShape
    from inc_mp_plugin.model.data.source import Excerpt


def answer_batches(config: Any, tokenizer: Any, excerpt: Excerpt, shape: BatchShape) -> list[dict[str, Any]]:
    """Tokenize prompts as inputs and their answers as labels, each cut to the sequence length.

    Args:
        config: configuration of the model.
        tokenizer: of transformers.
        excerpt: the samples.
        shape: of the batches.

    Raises:
        InputError: the samples cannot be read or are too few, are no prompts with answers, or are to be
            packed.
    """
    check_context(config, shape.sequence_length)
    if shape.pack:
        message = "pack: true joins the texts of a causal language model; this one is an encoder-decoder"
        raise InputError(message)
    read = read_samples(excerpt)
    rows = [_pair(tokenizer, place, sample, shape.sequence_length) for place, sample in read.items()]
    check_vocabulary(config, tokenizer, max(max(max(prompt), max(answer)) for prompt, answer in rows))
    parts = [rows[start : start + shape.batch_size] for start in range(0, excerpt.samples, shape.batch_size)]
    return [
        {
            "input_ids": padded([prompt for prompt, _ in part], tokenizer.pad_token_id or 0),
            "attention_mask": padded([[1] * len(prompt) for prompt, _ in part], 0),
            "labels": padded([answer for _, answer in part], IGNORED_LABEL),
        }
        for part in parts
    ]


def _pair(tokenizer: Any, place: str, sample: Any, length: int) -> tuple[list[int], list[int]]:
    if not isinstance(sample, Completion):
        message = (
            f"{place}: an encoder-decoder model writes an answer to a prompt; give prompt and completion"
        )
        raise InputError(message)
    prompt = tokenizer(sample.prompt, truncation=True, max_length=length)["input_ids"]
    answer = tokenizer(text_target=sample.answer, truncation=True, max_length=length)["input_ids"]
    if not prompt or not answer:
        message = f"{place}: its prompt or its completion is empty; leave it out"
        raise InputError(message)
    return prompt, answer
