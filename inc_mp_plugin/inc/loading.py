"""Loading what INC saved: products and experts that were modules must be modules again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from inc_mp_plugin.libraries.transformers import in_dtype
from inc_mp_plugin.scales.dtypes import dtype_of

_PRODUCTS = ("matmul_qk", "matmul_av")


def with_modules_of(folder: str, keywords: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments for INC's loading, with an empty model where INC would build the wrong modules.

    INC builds a stock model from the saved configuration. If attention products or experts were modules
    of their own when the model was saved, a stock model does not have these modules: their scales would be
    dropped without a word, and they would run in the base format.

    Args:
        folder: what INC's `save` wrote, or the name of a model on a hub, which is left to INC.
        keywords: of INC's own `load`.
    """
    saved = _saved_modules(Path(folder))
    products = any(name.rpartition(".")[2] in _PRODUCTS for name in saved)
    if keywords.get("original_model") is not None or not (products or _has_experts(saved)):
        return keywords
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    from inc_mp_plugin.model.attention import expose_bgemms
    from inc_mp_plugin.model.experts import expose_experts

    config = AutoConfig.from_pretrained(folder)
    base = dtype_of(config.quantization_config["hp_dtype"])
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, **in_dtype(base))
    expose_experts(model)
    if products:
        expose_bgemms(model)
    return {**keywords, "original_model": model}


def _saved_modules(folder: Path) -> set[str]:
    """Collect the names of all modules, quantizers included, of which a folder holds tensors."""
    from safetensors import safe_open

    names: set[str] = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for key in list(file.keys()):
                parts = key.split(".")
                names.update(".".join(parts[:end]) for end in range(1, len(parts)))
    return names


def _has_experts(modules: set[str]) -> bool:
    return any(name.rpartition(".")[2] == "experts" and f"{name}.0" in modules for name in modules)
