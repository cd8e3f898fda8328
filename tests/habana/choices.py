"""Which modules INC may quantize, lists that choose among them, and what it made of the choice."""

import re
from collections.abc import Iterable

from models import gaudi
from neural_compressor.torch.algorithms.fp8_quant._core.patching_common import mod_default_dict
from torch import nn

ATTENTIONS = ("eager", "flash")
OTHER_ATTENTION = {"eager": "flash", "flash": "eager"}
FUSED = "fused_scaled_dot_product_attention"
# What runs in one attention mode only. Mixtral has no products of its own and is always flash.
OF_ATTENTION = {"eager": ("matmul_qk", "matmul_av"), "flash": (FUSED,)}


def only(names: Iterable[str]) -> dict:
    """Lists that select exactly these modules; INC takes an empty allowlist for all, hence the blocklist."""
    patterns = [f"^{re.escape(name)}$" for name in names]
    nothing = {"types": [], "names": []}
    if not patterns:
        return {"allowlist": nothing, "blocklist": {"types": [], "names": [".*"]}}
    return {"allowlist": {"types": [], "names": patterns}, "blocklist": nothing}


def all_but(names: Iterable[str]) -> dict:
    """Lists that select every module except these."""
    blocked = [f"^{re.escape(name)}$" for name in names]
    return {"allowlist": {"types": [], "names": []}, "blocklist": {"types": [], "names": blocked}}


def candidates(model: nn.Module) -> dict[str, str]:
    """The modules that INC may quantize on Gaudi: name to class name."""
    classes = {name: type(module).__name__ for name, module in model.named_modules()}
    return {name: cls for name, cls in classes.items() if cls in mod_default_dict}


def patched(model: nn.Module) -> dict[str, str]:
    """The modules that INC replaced, name to class name: PatchedUnmeasuredModule if nothing was measured."""
    classes = {name: type(module).__name__ for name, module in model.named_modules()}
    return {name: cls for name, cls in classes.items() if cls.startswith("Patched")}


def ending(name: str, *ends: str) -> list[str]:
    """The modules of a model with one of these as the last part of their name."""
    return [module for module in candidates(gaudi(name)) if module.split(".")[-1] in ends]


def experts(name: str) -> list[str]:
    """The matrices inside a model's experts."""
    return [module for module in candidates(gaudi(name)) if ".experts." in module]


def allowed(name: str) -> list[str]:
    """All that INC can quantize in a model: every candidate but the experts of Qwen3-MoE."""
    excluded = experts(name) if name == "qwen3_moe" else []
    return [module for module in candidates(gaudi(name)) if module not in excluded]
