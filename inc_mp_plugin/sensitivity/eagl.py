"""EAGL (arXiv 2301.13330): entropy of an op's quantized weights as the value of keeping its precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.core.formats import check_formats, get_format
from inc_mp_plugin.core.graph import Graph
from inc_mp_plugin.core.plan import EAGL, OpValues
from inc_mp_plugin.model.modes import as_measured
from inc_mp_plugin.scales.dtypes import dtype_of
from inc_mp_plugin.sensitivity.maxabs import finite_weight
from inc_mp_plugin.sensitivity.rounding import CASTS, scaled

if TYPE_CHECKING:
    from inc_mp_plugin.scales.methods import Scales

_MOST_BITS = 8  # of a format whose codes are counted: 16 bits have more codes than most weights fill
_INTEGER_OF_BITS = {8: torch.uint8, 16: torch.int16}


def code_entropy(codes: Tensor) -> float:
    """Compute the entropy of the histogram of codes, in bits (section 3.3).

    ::

        H = - sum_b p_b log2 p_b,    p_b = share of the elements in bin b

    The entropy is 0 for one bin, and b for 2^b bins that are equally full.

    Args:
        codes: integers of any shape, one bin per value.

    Raises:
        InputError: there are no codes.

    Example:
        >>> code_entropy(torch.tensor([-1, -1, 3, 3]))
        1.0
    """
    if not codes.numel():
        message = "there is no entropy of no weights at all; give at least one code"
        raise InputError(message)
    _, counts = torch.unique(codes, return_counts=True)
    shares = counts.double() / codes.numel()
    return abs(float((shares * shares.log2()).sum()))


def eagl_values(codes: Mapping[str, Tensor], formats: Sequence[str]) -> OpValues:
    """Compute the values in bits of keeping ops, {op: codes of its weight}, in place of lowering them."""
    entropy = {op: code_entropy(bins) for op, bins in codes.items()}
    return OpValues(EAGL, "bit", {format_name: entropy for format_name in formats})


def measure_eagl(
    model: nn.Module, graph: Graph, formats: Sequence[str], scales: Scales | None = None
) -> OpValues:
    """Measure the value of keeping each op with a weight, from the weight alone: no data, no forward pass.

    As in the paper, codes of the base format are counted, if the base format has 8 bits or fewer. A wider
    base format has more codes than a weight fills, so that every histogram would be flat. Then codes of each
    lower format are counted. FP8 has 256 codes, under the scales that INC would use; +0 and -0 count as one.

    Args:
        model: in its base format.
        graph: from `capture`.
        formats: the base format, then the lower ones.
        scales: how INC scales to FP8; needed where a counted format is FP8.

    Returns:
        Entropies in bits. A bgemm has no weight and no value.

    Raises:
        InputError: a format whose codes cannot be counted here.
        NonFiniteError: a NaN or an infinity in a weight; the text names the op.
    """
    base, *lower = check_formats(formats)
    counted = {f: base if get_format(base).bits <= _MOST_BITS else f for f in lower}
    with as_measured(model):
        entropies = {f: _entropies(model, graph, f, scales) for f in dict.fromkeys(counted.values())}
    return OpValues(EAGL, "bit", {f: entropies[counted[f]] for f in lower})


def _entropies(model: nn.Module, graph: Graph, format_name: str, scales: Scales | None) -> dict[str, float]:
    entropies = {}
    for op in graph.ops:
        weight = finite_weight(model, op.name)
        if weight is not None:
            entropies[op.name] = code_entropy(weight_codes(weight.detach(), format_name, scales))
    return entropies


def weight_codes(weight: Tensor, format_name: str, scales: Scales | None = None) -> Tensor:
    """Find the codes of a weight in a floating-point format, as integers in the weight's shape.

    Args:
        weight: of any shape; its first axis counts output channels.
        format_name: FP8, BF16 or FP16.
        scales: how INC scales to FP8; needed for FP8 formats.

    Raises:
        InputError: an FP8 format without scales, or a format that is no FP8, BF16 or FP16.
    """
    if scales is not None and get_format(format_name).is_fp8:
        scale = scales.of_weight(weight, format_name)
        divided = scaled(weight, scale, scales.full_scale(format_name))
        lowered = divided.to(dtype_of(format_name))
    elif format_name in CASTS:
        lowered = weight.to(dtype_of(format_name))
    else:
        message = (
            f"the codes of a weight in {format_name} depend on its step or scale: give scales for FP8, "
            "and for integers the codes themselves (eagl_values)"
        )
        raise InputError(message)
    codes = lowered.view(_INTEGER_OF_BITS[get_format(format_name).bits])
    return codes.masked_fill(lowered.float() == 0, 0)
