"""`quantization_config` of a checkpoint: what compressed-tensors says of it in config.json."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from inc_mp_plugin.core.literals import Scheme

QUANT_METHOD = "compressed-tensors"
LAYOUT = "float-quantized"
FORMAT = "fp8_e4m3"  # of its weights and activations
_HEAD = "lm_head"  # no class of vLLM's whose name has "Linear" in it


def quantization_config(scheme: Scheme, lowered: Collection[str], others: Iterable[str]) -> dict[str, Any]:
    """Describe modules in FP8: all linear modules but those that `ignore` names one by one.

    Args:
        scheme: "dynamic", scales of weights by output channel and of activations by token; "static", one
            scale of each weight and of each input.
        lowered: modules in FP8.
        others: all other linear modules.
    """
    dynamic = scheme == "dynamic"
    number = {"num_bits": 8, "type": "float", "symmetric": True}
    heads = sorted(name for name in lowered if name.rpartition(".")[2] == _HEAD)
    group = {
        "targets": ["Linear", *heads],
        "weights": {**number, "strategy": "channel" if dynamic else "tensor", "dynamic": False},
        "input_activations": {**number, "strategy": "token" if dynamic else "tensor", "dynamic": dynamic},
        "output_activations": None,
    }
    return {
        "quant_method": QUANT_METHOD,
        "format": LAYOUT,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": sorted(others),
        "kv_cache_scheme": None,
    }
