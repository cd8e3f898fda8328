"""Samples of a data file, as batches of tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.model.loading import load_tokenizer
from inc_mp_plugin.model.texts import Conversation, read_texts

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def load_batches(
    config: Any,
    tokenizer_name: str,
    data: Path,
    *,
    samples: int,
    sequence_length: int,
    batch_size: int,
    trust_remote_code: bool,
    skip: int = 0,
) -> list[dict[str, Any]]:
    """Tokenize samples of a JSON-lines file, after `skip` others, cut to a length, padded on the right.

    Args:
        config: configuration of the model.
        tokenizer_name: folder of the tokenizer, or its name on a hub.
        data: the JSON-lines file.
        samples: number of samples.
        sequence_length: most tokens of a sample.
        batch_size: samples per batch; the last batch may have fewer.
        trust_remote_code: run code that comes with the tokenizer.
        skip: number of samples to leave out at the start of the file.

    Raises:
        InputError: the tokenizer or the file cannot be read, a line is no sample or a conversation without a
            chat template, there are too few samples, the model's context is shorter than the sequence length,
            or it does not know all tokens.
    """
    _check_context(config, sequence_length)
    tokenizer = load_tokenizer(tokenizer_name, trust_remote_code=trust_remote_code)
    texts = read_texts(data, samples, skip)
    ids = [tokenize(tokenizer, text, sequence_length) for text in texts.values()]
    for number, tokens in zip(texts, ids, strict=True):
        if len(tokens) < 2:
            message = f"{data}, line {number}: its text has fewer than two tokens"
            raise InputError(message)
    tensors = _padded(ids, tokenizer.pad_token_id or 0)
    vocabulary, largest = config.get_text_config().vocab_size, int(tensors["input_ids"].max())
    if largest >= vocabulary:
        message = (
            f"the tokenizer {tokenizer_name!r} gives token {largest}, but the model knows {vocabulary} "
            "tokens; give its own tokenizer"
        )
        raise InputError(message)
    return [
        {key: value[start : start + batch_size] for key, value in tensors.items()}
        for start in range(0, len(texts), batch_size)
    ]


def _padded(ids: Sequence[Sequence[int]], padding: int) -> dict[str, Any]:
    import torch
    from torch.nn.utils.rnn import pad_sequence

    rows = [torch.tensor(tokens) for tokens in ids]
    masks = [torch.ones_like(row) for row in rows]
    return {
        "input_ids": pad_sequence(rows, batch_first=True, padding_value=padding),
        "attention_mask": pad_sequence(masks, batch_first=True),
    }


def tokenize(tokenizer: Any, text: str | Conversation, length: int) -> list[int]:
    """Tokenize a text, or a conversation by the tokenizer's chat template, and cut it to a length.

    A conversation that ends without the assistant's answer ends with the start of one.

    A text that a chat template has rendered begins with the token that begins texts; a second one would take
    the massive activations of the first.

    Args:
        tokenizer: of transformers.
        text: to be tokenized.
        length: most tokens.

    Raises:
        InputError: a conversation without a chat template, or one that the template refuses.
    """
    if isinstance(text, Conversation):
        text = _rendered(tokenizer, text)
    rendered = bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)
    tokens: list[int] = tokenizer(text, truncation=True, max_length=length, add_special_tokens=not rendered)[
        "input_ids"
    ]
    return tokens


def _rendered(tokenizer: Any, conversation: Conversation) -> str:
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        message = (
            f"the data holds messages, but the tokenizer {tokenizer.name_or_path!r} has no chat template; "
            'give {"text": ...} lines, or another model.tokenizer'
        )
        raise InputError(message)
    messages = [{"role": role, "content": content} for role, content in conversation.messages]
    unanswered = messages[-1]["role"] != "assistant"
    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=unanswered)
    except TemplateError as error:
        message = f"the chat template of {tokenizer.name_or_path!r} refuses a conversation: {error}"
        raise InputError(message) from error
    return text


def _check_context(config: Any, sequence_length: int) -> None:
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    if context is not None and sequence_length > context:
        message = (
            f"calibration.sequence_length is {sequence_length}, but the model's context is "
            f"{context} tokens; give at most that"
        )
        raise InputError(message)
