"""Scales perturbed before quantization: several seeds give the mean and the spread of an accuracy."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.inc.backend import quantized_weight, quantizers_of
from inc_mp_plugin.libraries.torch import parameters_of
from inc_mp_plugin.model.modules import twin
from inc_mp_plugin.model.switch import Switch

# INC leaves a factor of 2 between the largest weight and the format's largest number, and 4 for
# inputs (its back-offs); a scale of more than half its size cannot saturate.
SPREAD_BELOW = 0.5


@contextmanager
def perturbed(switch: Switch, seed: int, spread: float = 0.1) -> Iterator[None]:
    """Multiply every scale of a switch's FP8 modules by a factor of its own, as long as the context lasts.

    The factors are uniform on [1 - spread, 1 + spread]. Inputs are then rounded with their new scales,
    and weights are quantized anew, by INC, from those of the base modules (section 3.1 of the paper).
    A factor depends on the seed, the op's name and which of its scales it is for, on nothing else. Ops
    can be selected before and within the context; afterwards every module is as it was, bit by bit.

    Args:
        switch: from `switchable` on a CPU.
        seed: any integer; the same one gives the same factors.
        spread: at least 0, below 0.5, where INC's back-offs still keep everything from saturating.

    Raises:
        InputError: the spread is out of range, or a module of the switch has no emulated FP8 scales.

    Example:
        >>> with perturbed(switch, seed=3):  # doctest: +SKIP
        ...     switch.select({"lm_head": "fp8_e4m3"})
        ...     accuracy = evaluate_tasks(switch.model, tokenizer, tasks)
    """
    if not 0 <= spread < SPREAD_BELOW:
        message = f"spread {spread}: give at least 0 and less than {SPREAD_BELOW}"
        raise InputError(message)
    originals: list[tuple[nn.Module, str, Any]] = []

    def put(module: nn.Module, name: str, value: Any) -> None:
        originals.append((module, name, getattr(module, name)))
        setattr(module, name, value)

    try:
        for op, base, patched in switch.pairs():
            quantizers = _quantizers(op, patched)
            generator = _generator(seed, op)
            for together in quantizers:
                factor = _factor(together[0].scale, spread, generator)
                for quantizer in together:
                    put(quantizer, "scale", _times(quantizer.scale, factor))
                    if hasattr(quantizer, "scale_inv"):
                        put(quantizer, "scale_inv", _times(quantizer.scale_inv, 1 / factor))
            if "weight" in parameters_of(patched):
                put(patched, "weight", _quantized_weight(base, patched))
        yield
    finally:
        for module, name, value in reversed(originals):
            setattr(module, name, value)


def _quantizers(op: str, patched: Any) -> list[tuple[Any, ...]]:
    """Group INC's quantizers of a module by the scale that they share: one per input, two per weight.

    Raises:
        InputError: the module has no emulated FP8 scales.
    """
    extra = quantizers_of(patched)
    if extra is None or not patched.use_qdq:
        message = (
            f"{op!r} runs in a {type(patched).__name__}, which has no scales to perturb; "
            "use an FP8 format on a CPU, where INC emulates it"
        )
        raise InputError(message)
    return [(quantizer,) for quantizer in extra.inputs] + [tuple(pair) for pair in extra.params.values()]


def _quantized_weight(base: nn.Module, patched: Any) -> nn.Parameter:
    """Quantize the base module's weight through INC with the scale that its patched module has now."""
    weight = quantized_weight(twin(base), patched)
    return nn.Parameter(weight, requires_grad=patched.weight.requires_grad)


def _generator(seed: int, op: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed} {op}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


def _factor(scale: Any, spread: float, generator: torch.Generator) -> torch.Tensor:
    """Draw factors for a scale of a tensor (a number, or a tensor of one) or of its channels.

    They are uniform on [1 - spread, 1 + spread].
    """
    shape = scale.shape if isinstance(scale, torch.Tensor) else ()
    return 1 + spread * (2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1)


def _times(scale: Any, factor: torch.Tensor) -> Any:
    """Multiply a scale by a factor, and keep the form that INC has it in: a number or a parameter."""
    if not isinstance(scale, torch.Tensor):
        return scale * factor.item()
    product = scale.detach() * factor.reshape(scale.shape).to(scale)
    return nn.Parameter(product, requires_grad=False) if isinstance(scale, nn.Parameter) else product
