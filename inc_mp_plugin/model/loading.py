"""Loading of what a recipe names: the model, its tokenizer, and samples as batches."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.libraries.transformers import commit_of, in_dtype
from inc_mp_plugin.model.checkpoint import check_whole
from inc_mp_plugin.model.load_errors import loading
from inc_mp_plugin.model.texts import read_texts
from inc_mp_plugin.runtime.progress import say
from inc_mp_plugin.scales.dtypes import dtype_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn


def load_model(name_or_path: str, dtype: str, *, trust_remote_code: bool) -> nn.Module:
    """Load a causal language model in its base format, in evaluation mode.

    Args:
        name_or_path: folder of the model, or its name on a hub.
        dtype: its base format: "fp32", "bf16" or "fp16".
        trust_remote_code: run code that comes with the model.

    Raises:
        InputError: transformers cannot load it, or its files do not hold all of it.
    """
    from transformers import AutoModelForCausalLM

    config = load_config(name_or_path, {}, trust_remote_code=trust_remote_code)
    quantization = getattr(config, "quantization_config", None)
    model: nn.Module
    with loading("model", name_or_path):
        model, info = AutoModelForCausalLM.from_pretrained(
            name_or_path,
            **in_dtype(dtype_of(dtype)),
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # the error of transformers names none
        )
    check_whole(model, info, name_or_path, quantization)
    return model.eval()


def load_config(name_or_path: str, changes: Mapping[str, Any], *, trust_remote_code: bool) -> Any:
    """Load the configuration of a model, with some values changed.

    Args:
        name_or_path: folder of the model, or its name on a hub.
        changes: new values, {name: value}.
        trust_remote_code: run code that comes with the model.

    Raises:
        InputError: transformers cannot read it, or it has no such value to change.
    """
    from transformers import AutoConfig

    with loading("configuration", name_or_path):
        config = AutoConfig.from_pretrained(name_or_path, trust_remote_code=trust_remote_code)
    for key, value in changes.items():
        if not hasattr(config, key):
            message = f"model.config.{key} is not a value of the configuration {name_or_path!r}"
            raise InputError(message)
        setattr(config, key, value)
    return config


def random_model(config: Any, dtype: str, *, trust_remote_code: bool) -> nn.Module:
    """Make a causal language model with random weights, always the same, from a configuration alone.

    Args:
        config: configuration of the model.
        dtype: its base format: "fp32", "bf16" or "fp16".
        trust_remote_code: run code that comes with the model.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]), loading("model", config.name_or_path):
        torch.manual_seed(0)
        model: nn.Module = AutoModelForCausalLM.from_config(
            config, **in_dtype(dtype_of(dtype)), trust_remote_code=trust_remote_code
        )
    return model.eval()


def empty_model(config: Any, dtype: str, *, trust_remote_code: bool) -> nn.Module:
    """Make a causal language model without weights (on the meta device) from a configuration alone.

    Args:
        config: configuration of the model.
        dtype: its base format: "fp32", "bf16" or "fp16".
        trust_remote_code: run code that comes with the model.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"), loading("model", config.name_or_path):
        model: nn.Module = AutoModelForCausalLM.from_config(
            config, **in_dtype(dtype_of(dtype)), trust_remote_code=trust_remote_code
        )
    return model.eval()


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
        InputError: the tokenizer or the file cannot be read, a line is not {"text": ...}, there are too
            few samples, the model's context is shorter than the sequence length, or it does not know
            all tokens.
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
    known, largest = config.get_text_config().vocab_size, int(tensors["input_ids"].max())
    if largest >= known:
        message = (
            f"the tokenizer {tokenizer_name!r} gives token {largest}, but the model knows {known} tokens; "
            "give its own tokenizer"
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


def tokenize(tokenizer: Any, text: str, length: int) -> list[int]:
    """Tokenize a text and cut it to a length.

    A text that a chat template has rendered begins with the token that begins texts; a second one would take
    the massive activations of the first.

    Args:
        tokenizer: of transformers.
        text: to be tokenized.
        length: most tokens.
    """
    rendered = bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)
    tokens: list[int] = tokenizer(text, truncation=True, max_length=length, add_special_tokens=not rendered)[
        "input_ids"
    ]
    return tokens


def _check_context(config: Any, sequence_length: int) -> None:
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    if context is not None and sequence_length > context:
        message = (
            f"calibration.sequence_length is {sequence_length}, but the model's context is "
            f"{context} tokens; give at most that"
        )
        raise InputError(message)


def load_tokenizer(name: str, *, trust_remote_code: bool) -> Any:
    """Load a tokenizer; without a padding token it pads with the one that ends a text.

    Raises:
        InputError: transformers cannot load it.
    """
    from transformers import AutoTokenizer

    with loading("tokenizer", name):
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def model_fingerprint(name_or_path: str, *, trust_remote_code: bool) -> str:
    """Hash a local model's files, or return the commit of a published one.

    Raises:
        InputError: there is no such model.
    """
    folder = Path(name_or_path)
    if folder.is_dir():
        digest = hashlib.sha256()
        for path in sorted(folder.glob("*")):
            if path.suffix in {".json", ".safetensors", ".bin", ".py", ".model"}:
                digest.update(f"{path.name} {file_fingerprint(path)}\n".encode())
        return digest.hexdigest()
    say(f"{name_or_path!r} is not a folder here; asking the model hub ...")
    load_config(name_or_path, {}, trust_remote_code=trust_remote_code)
    return f"{name_or_path}@{commit_of(name_or_path)}"


def file_fingerprint(path: Path) -> str:
    """Hash a file's content.

    Raises:
        InputError: it does not exist.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while part := file.read(1 << 20):
                digest.update(part)
    except OSError as error:
        message = f"{path} cannot be read: {error.strerror}"
        raise InputError(message) from error
    return digest.hexdigest()
