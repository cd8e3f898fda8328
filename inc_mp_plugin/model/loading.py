"""Models and tokenizers by name: a folder, or a name on a hub."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.libraries.transformers import commit_of, in_dtype
from inc_mp_plugin.model.adapters import base_of, is_adapter, with_adapter, with_empty_adapter
from inc_mp_plugin.model.checkpoint import check_whole
from inc_mp_plugin.model.load_errors import loading
from inc_mp_plugin.model.placing import in_files, in_places
from inc_mp_plugin.runtime.progress import say
from inc_mp_plugin.runtime.store import file_fingerprint
from inc_mp_plugin.scales.dtypes import dtype_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from inc_mp_plugin.core.literals import DeviceMap


# Endings of classes whose labels no form of a recipe's data holds.
_FROM_PYTHON = (
    "ForMaskedLM",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMultipleChoice",
    "ForImageClassification",
    "ForPreTraining",
)


def load_model(
    name_or_path: str,
    dtype: str,
    *,
    trust_remote_code: bool,
    merge_adapters: bool = False,
    device_map: DeviceMap | None = None,
    cast_as_used: bool = False,
) -> nn.Module:
    """Load a model in its base format, in evaluation mode: a causal language model, or what its class names.

    Args:
        name_or_path: folder of the model or of an adapter of PEFT, or the model's name on a hub.
        dtype: its base format: "fp32", "bf16" or "fp16".
        trust_remote_code: run code that comes with the model.
        merge_adapters: merge the adapter into the base model; else it stays a `PeftModel`.
        device_map: "auto" to keep it on a card, in memory and on a disk, as far as each goes.
        cast_as_used: keep weights in their files, and cast each when its module runs; stacked experts, whose
            module reads a part of its weights alone, are cast here.

    Raises:
        InputError: transformers or PEFT cannot load it, its files do not hold all of it, or there is no
            adapter to merge, or one beside a `device_map`.
    """
    if device_map is not None and is_adapter(name_or_path):
        message = (
            f"{name_or_path!r} is an adapter, which run.device_map cannot place; save it merged into its "
            "base model, or leave run.device_map out"
        )
        raise InputError(message)
    if is_adapter(name_or_path):
        base = _load(base_of(name_or_path), dtype, trust_remote_code=trust_remote_code)
        return with_adapter(base, name_or_path, merge=merge_adapters).eval()
    if merge_adapters:
        message = (
            f"model.merge_adapters is set, but {name_or_path!r} is no folder of an adapter "
            "(adapter_config.json); leave it out"
        )
        raise InputError(message)

    def load(**places: Any) -> nn.Module:
        return _load(name_or_path, dtype, places, trust_remote_code=trust_remote_code).eval()

    if cast_as_used:
        from inc_mp_plugin.model.experts import fused_experts

        model = in_files(load)
        if not fused_experts(model):
            say(
                f"weights stay in their files, and each is cast to {dtype} when its module runs (memory: low)"
            )
            return model
    return load() if device_map is None else in_places(load)


def _load(
    name_or_path: str, dtype: str, places: Mapping[str, Any] | None = None, *, trust_remote_code: bool
) -> nn.Module:
    config = load_config(name_or_path, {}, trust_remote_code=trust_remote_code)
    quantization = getattr(config, "quantization_config", None)
    model: nn.Module
    with loading("model", name_or_path):
        model, info = _auto_class(config).from_pretrained(
            name_or_path,
            **in_dtype(dtype_of(dtype)),
            **(places or {}),
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # the error of transformers names none
        )
    check_whole(model, info, name_or_path, quantization)
    return model


def load_config(name_or_path: str, changes: Mapping[str, Any], *, trust_remote_code: bool) -> Any:
    """Load the configuration of a model, with some values changed.

    Args:
        name_or_path: folder of the model or of an adapter of it, or the model's name on a hub.
        changes: new values, {name: value}.
        trust_remote_code: run code that comes with the model.

    Raises:
        InputError: transformers cannot read it, or it has no such value to change.
    """
    from transformers import AutoConfig

    with loading("configuration", name_or_path):
        config = AutoConfig.from_pretrained(base_of(name_or_path), trust_remote_code=trust_remote_code)
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

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _from_config(config, dtype, trust_remote_code=trust_remote_code)


def empty_model(config: Any, dtype: str, *, trust_remote_code: bool, adapter: str | None = None) -> nn.Module:
    """Make a causal language model without weights (on the meta device) from a configuration alone.

    Args:
        config: configuration of the model.
        dtype: its base format: "fp32", "bf16" or "fp16".
        trust_remote_code: run code that comes with the model.
        adapter: folder of an adapter that is put on it, or of anything else, which adds nothing.
    """
    import torch

    with torch.device("meta"):
        model = _from_config(config, dtype, trust_remote_code=trust_remote_code)
    return model if adapter is None or not is_adapter(adapter) else with_empty_adapter(model, adapter).eval()


def _from_config(config: Any, dtype: str, *, trust_remote_code: bool) -> nn.Module:
    with loading("model", config.name_or_path):
        model: nn.Module = _auto_class(config).from_config(
            config, **in_dtype(dtype_of(dtype)), trust_remote_code=trust_remote_code
        )
    return model.eval()


def is_classifier(config: Any) -> bool:
    """Tell if a configuration is of a model that gives a text a class, classes or numbers."""
    name: str = (config.architectures or [""])[0]
    return name.endswith("ForSequenceClassification")


def _auto_class(config: Any) -> Any:
    """Choose the auto class of a model: by its encoder, or its images, or else of causal language models."""
    import transformers

    name = (config.architectures or [""])[0]
    if name.endswith(_FROM_PYTHON):
        message = (
            f"a recipe cannot make the labels of a {name}; give mp.tune the model, and batches that hold its "
            "labels"
        )
        raise InputError(message)
    if is_classifier(config):
        return transformers.AutoModelForSequenceClassification
    if config.is_encoder_decoder:
        return transformers.AutoModelForSeq2SeqLM
    if hasattr(config, "vision_config") and name.endswith("ForConditionalGeneration"):
        return transformers.AutoModelForImageTextToText
    return transformers.AutoModelForCausalLM


def load_tokenizer(name: str, *, trust_remote_code: bool) -> Any:
    """Load a tokenizer; without a padding token it pads with the one that ends a text.

    An adapter that was saved without one has that of its base model.

    Raises:
        InputError: transformers cannot load it.
    """
    from transformers import AutoTokenizer

    if is_adapter(name) and not (Path(name) / "tokenizer_config.json").is_file():
        name = base_of(name)
    with loading("tokenizer", name):
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_processor(name: str, *, trust_remote_code: bool) -> Any:
    """Load a processor: a tokenizer together with what turns images into tensors.

    Raises:
        InputError: transformers cannot load it, or the model has none.
    """
    from transformers import AutoProcessor

    if is_adapter(name) and not (Path(name) / "processor_config.json").is_file():
        name = base_of(name)
    with loading("processor", name):
        processor = AutoProcessor.from_pretrained(name, trust_remote_code=trust_remote_code)
    if not hasattr(processor, "image_processor"):
        message = (
            f"the data has images, but {name!r} has no processor of images; give texts, or another model"
        )
        raise InputError(message)
    processor.tokenizer.padding_side = "right"
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    return processor


def model_fingerprint(name_or_path: str, *, trust_remote_code: bool) -> str:
    """Hash a local model's files, or return the commit of a published one; of an adapter and its base both.

    Raises:
        InputError: there is no such model.
    """
    folder = Path(name_or_path)
    if folder.is_dir():
        digest = hashlib.sha256()
        for path in sorted(folder.glob("*")):
            if path.suffix in {".json", ".safetensors", ".bin", ".py", ".model"}:
                digest.update(f"{path.name} {file_fingerprint(path)}\n".encode())
        own = digest.hexdigest()
        if not is_adapter(name_or_path):
            return own
        return f"{own} on {model_fingerprint(base_of(name_or_path), trust_remote_code=trust_remote_code)}"
    say(f"{name_or_path!r} is not a folder here; asking the model hub ...")
    load_config(name_or_path, {}, trust_remote_code=trust_remote_code)
    return f"{name_or_path}@{commit_of(name_or_path)}"
