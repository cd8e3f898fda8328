"""What a recipe names, loaded: the model, its tokenizer, and samples as batches."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inc_mp_plugin.errors import InputError
from inc_mp_plugin.libraries.transformers import commit_of, in_dtype
from inc_mp_plugin.progress import say

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def load_model(name_or_path: str, dtype: str, *, trust_remote_code: bool) -> nn.Module:
    """Load a causal language model in its base format, in evaluation mode.

    Raises:
        InputError: transformers cannot load it.
    """
    import torch
    from transformers import AutoModelForCausalLM

    try:
        model: nn.Module = AutoModelForCausalLM.from_pretrained(
            name_or_path,
            **in_dtype(getattr(torch, _DTYPES[dtype])),
            trust_remote_code=trust_remote_code,
        )
    except (OSError, ValueError) as error:
        raise InputError(_cannot_load("model", name_or_path, error)) from error
    return model.eval()


def load_config(name_or_path: str, changes: Mapping[str, Any], *, trust_remote_code: bool) -> Any:
    """Load the configuration of a model, with some values changed.

    Raises:
        InputError: transformers cannot read it, or it has no such value to change.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(name_or_path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise InputError(_cannot_load("configuration", name_or_path, error)) from error
    for key, value in changes.items():
        if not hasattr(config, key):
            message = f"model.config.{key} is not a value of the configuration {name_or_path!r}"
            raise InputError(message)
        setattr(config, key, value)
    return config


def random_model(config: Any, dtype: str, *, trust_remote_code: bool) -> nn.Module:
    """Make a causal language model with random weights, always the same, from a configuration alone."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = AutoModelForCausalLM.from_config(
            config, **in_dtype(getattr(torch, _DTYPES[dtype])), trust_remote_code=trust_remote_code
        )
    return model.eval()


def empty_model(config: Any, dtype: str, *, trust_remote_code: bool) -> nn.Module:
    """Make a causal language model without weights (on the meta device) from a configuration alone."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: nn.Module = AutoModelForCausalLM.from_config(
            config, **in_dtype(getattr(torch, _DTYPES[dtype])), trust_remote_code=trust_remote_code
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

    Raises:
        InputError: the tokenizer or the file cannot be read, a line is not {"text": ...}, there are too
            few samples, the model's context is shorter than the sequence length, or it does not know
            all tokens.
    """
    _check_context(config, sequence_length)
    tokenizer = load_tokenizer(tokenizer_name, trust_remote_code=trust_remote_code)
    texts = read_texts(data, samples, skip)
    encoded = tokenizer(
        texts,
        truncation=True,
        max_length=sequence_length,
        padding=True,
        padding_side="right",
        return_tensors="pt",
    )
    tensors = {key: encoded[key] for key in ("input_ids", "attention_mask")}
    short = (tensors["attention_mask"].sum(dim=1) < 2).nonzero().flatten().tolist()
    if short:
        message = f"{data}, line {skip + short[0] + 1}: its text has fewer than two tokens"
        raise InputError(message)
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

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise InputError(_cannot_load("tokenizer", name, error)) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def read_texts(path: Path, samples: int, skip: int = 0) -> list[str]:
    """Read texts of a JSON-lines file: the first, or those after `skip` others.

    Raises:
        InputError: it cannot be read, a line is not {"text": ...}, or it has too few of them.
    """
    lines = _lines(path)
    numbered = list(enumerate(lines, 1))[skip : skip + samples]
    if len(numbered) < samples:
        message = (
            f"{path} holds {len(lines)} samples, {skip + samples} are asked for; give more, or ask for fewer"
        )
        raise InputError(message)
    return [_text(path, number, line) for number, line in numbered]


def count_texts(path: Path) -> int:
    """Number of samples of a JSON-lines file.

    Raises:
        InputError: it cannot be read.
    """
    return len(_lines(path))


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except FileNotFoundError:
        message = f"data file {path} does not exist"
        raise InputError(message) from None
    except (OSError, UnicodeDecodeError) as error:
        message = f"data file {path} cannot be read: {error}"
        raise InputError(message) from error


def model_fingerprint(name_or_path: str, *, trust_remote_code: bool) -> str:
    """Hash of a local model's files, or the commit of a published one.

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
    """Hash of a file's content.

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


def _text(path: Path, number: int, line: str) -> str:
    try:
        content = json.loads(line)
    except ValueError as error:
        message = f"{path}, line {number}: not JSON ({error})"
        raise InputError(message) from error
    if not isinstance(content, dict) or not isinstance(content.get("text"), str):
        message = f'{path}, line {number}: not an object with a "text"'
        raise InputError(message)
    return str(content["text"])


def _cannot_load(what: str, name_or_path: str, error: Exception) -> str:
    reason = " ".join(str(error).split())[:200]
    return f"the {what} {name_or_path!r} cannot be loaded: {reason}"
