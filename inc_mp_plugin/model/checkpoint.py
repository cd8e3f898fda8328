"""A model against the files that it was loaded from: transformers only warns of what these did not hold."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inc_mp_plugin.core.errors import InputError, few
from inc_mp_plugin.libraries.transformers import mismatched_weights
from inc_mp_plugin.runtime.progress import warn

if TYPE_CHECKING:
    from torch import nn

_FP8 = ("F8_E4M3", "F8_E5M2")
_BASES = {"fp32": "F32", "bf16": "BF16", "fp16": "F16"}
_INTEGERS = ("I8", "U8", "I16", "U16", "I32", "U32")


def check_whole(model: nn.Module, info: Mapping[str, Any], name_or_path: str, quantization: Any) -> None:
    """Check that the files held every weight of a model, as they are; warn of all that was passed over.

    Args:
        model: as transformers loaded it.
        info: its `output_loading_info`, with sizes that differ ignored.
        name_or_path: of the model.
        quantization: the `quantization_config` of its configuration, or None.

    Raises:
        InputError: weights are missing, of other sizes, or codes without the scales that belong to them.
    """
    start = f"the model {name_or_path!r} cannot be used"
    sizes = sorted(mismatched_weights(info))
    if sizes:
        shape = model.get_parameter(sizes[0]).shape
        message = (
            f"{start}: {len(sizes)} weights have other sizes than its config.json asks for, such as "
            f"{sizes[0]}, which should be {' x '.join(map(str, shape))}; one of both is of another model"
        )
        raise InputError(message)
    unexpected = sorted(info["unexpected_keys"])
    missing = _missing(model, info["missing_keys"])
    if missing:
        message = (
            f"{start}: its files hold no {few(missing)}, which would be random numbers; "
            "its config.json or its weights are of another model, or incomplete"
        )
        if unexpected:
            message += f"; weights in its files without a place in the model: {few(unexpected)}"
        raise InputError(message)
    _check_formats(model, name_or_path, quantization, unexpected)
    if unexpected:
        warn(f"{name_or_path}: its files hold weights that the model has no place for: {few(unexpected)}")


def _missing(model: nn.Module, keys: Collection[str]) -> list[str]:
    """List the keys whose tensor no other key gives: a tied head is its embedding."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    loaded = {id(parameter) for key, parameter in parameters.items() if key not in keys}
    missing = {id(p): key for key, p in reversed(parameters.items()) if key in keys and id(p) not in loaded}
    return sorted({*missing.values(), *(key for key in keys if key not in parameters)})


def _check_formats(
    model: nn.Module, name_or_path: str, quantization: Any, unexpected: Collection[str]
) -> None:
    if quantization is not None:
        passed_over = not hasattr(model, "hf_quantizer") and hasattr(model.config, "quantization_config")
        reference = "the weights as they are stored" if passed_over else "what transformers made of them"
        warn(
            f"{name_or_path}: its config.json says that it is quantized already ({_method(quantization)}); "
            f"losses are measured against {reference}. A checkpoint in BF16, if there is one, gives a better "
            "plan"
        )
        return
    stored = _stored_formats(model, name_or_path)
    codes = sorted(key for key, format_name in stored.items() if format_name in _INTEGERS)
    fp8 = sorted(key for key, format_name in stored.items() if format_name in _FP8)
    scaled = [key for key in unexpected if "scale" in key]
    if codes or (fp8 and scaled):
        message = (
            f"the model {name_or_path!r} cannot be used: weights are stored as {stored[(codes or fp8)[0]]} "
            f"({few(codes or fp8)}), and its config.json has no quantization_config that says what they "
            "stand for; give a checkpoint in FP32, BF16 or FP16"
        )
        raise InputError(message)
    if fp8:
        warn(
            f"{name_or_path}: its weights are FP8 already ({few(fp8)}); losses are measured against them, "
            "as they are. A checkpoint in BF16, if there is one, gives a better plan"
        )


def _method(quantization: Any) -> str:
    values = quantization if isinstance(quantization, dict) else vars(quantization)
    return str(values.get("quant_method", "a method without a name"))


def _stored_formats(model: nn.Module, name_or_path: str) -> dict[str, str]:
    """Read the formats in the files, of what are floating-point parameters in the model."""
    from safetensors import safe_open

    parameters = {k for k, p in model.named_parameters(remove_duplicate=False) if p.is_floating_point()}
    formats = {}
    for path in sorted(folder_of(name_or_path).glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for key in parameters.intersection(file.keys()):
                formats[key] = file.get_slice(key).get_dtype()
    return formats


def is_cast(name_or_path: str, dtype: str) -> bool:
    """Tell if most weights of a model in a folder are floating-point numbers in another base format.

    Args:
        name_or_path: of the model; False if it is no folder of safetensors files.
        dtype: the base format.

    Example:
        >>> is_cast("a name on a hub", "fp32")
        False
    """
    from safetensors import safe_open

    sizes = Counter[str]()
    for path in Path(name_or_path).glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118 - it is no mapping
                part = file.get_slice(key)
                sizes[part.get_dtype()] += math.prod(part.get_shape())
    others = sum(sizes[name] for base, name in _BASES.items() if base != dtype)
    return 2 * others > sizes.total()


def folder_of(name_or_path: str) -> Path:
    """Return the folder of a model's files: this one, or that in the cache of a hub.

    Raises:
        InputError: the files of a published model are not all here.
    """
    if Path(name_or_path).is_dir():
        return Path(name_or_path)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name_or_path, local_files_only=True))
    except FileNotFoundError:
        message = f"{name_or_path} is not on this machine; download it, or give its folder"
        raise InputError(message) from None
