"""torch.ops.hpu FP8 operators as INC calls them: casts that saturate, products in float32.

What each argument means was read from INC's calls; results are not those of a Gaudi bit by bit.
"""

import torch

from habana_frameworks import device
from habana_frameworks.torch import operators

FP8 = torch.float8_e4m3fn
GEMM = (
    "Tensor a, bool transpose_a, Tensor b, bool transpose_b, Tensor? d, ScalarType out_dtype, "
    "{scale} scale_a, {scale} scale_b, Tensor? bias, bool accumulate"
)
SCALES = (
    "{scale} d_scale_hidden_states, {scale}[] d_scale_intermediate_hidden_states, "
    "{scale}[] d_scale_w1, {scale}[] d_scale_w2, {scale}[] d_scale_w3"
)


def to_fp8(x, scale, dtype):
    """X times scale, kept within the device's range, rounded to FP8."""
    scaled = x.float() if scale is None else x.float() * scale
    largest = device.largest_fp8()
    return scaled.clamp(-largest, largest).to(dtype)


def cast_to_fp8(x, scale, stochastic, is_amax, dtype):
    """Also returns a largest magnitude, which INC does not ask for."""
    return to_fp8(x, scale, dtype), torch.zeros(())


def cast_from_fp8(x, scale, out_dtype):
    return (x.float() if scale is None else x.float() * scale).to(out_dtype)


def gemm(a, transpose_a, b, transpose_b, d, out_dtype, scale_a, scale_b, bias, accumulate):
    """The product of two FP8 tensors, each with the scale that undoes its cast."""
    if not a.dtype == b.dtype == FP8:
        message = f"fp8_gemm_v2 needs FP8 on both sides, got {a.dtype} and {b.dtype}"
        raise RuntimeError(message)
    a = a.transpose(-1, -2) if transpose_a else a
    b = b.transpose(-1, -2) if transpose_b else b
    product = a.float() @ b.float()
    for scale in (scale_a, scale_b):
        product = product if scale is None else product * scale
    return product.to(out_dtype)


def measured_experts(
    hidden_states,
    expert_routing_table,
    router_weights,
    w1,
    w2,
    w3,
    permuted_weights,
    activation,
    first,
    last,
    measure,
):
    """The mixture of experts, and the largest magnitude inside each expert: 0 if no token came to it."""
    inputs = hidden_states, expert_routing_table, router_weights, w1, w2, w3
    out = operators.mixture_of_experts(*inputs, permuted_weights, activation, first, last)
    gates, ups = (operators.as_inputs_by_outputs(w, permuted_weights) for w in (w1, w2))
    largest = []
    for i, expert in enumerate(range(first, last + 1)):
        routed = (expert_routing_table == expert).any(dim=-1, keepdim=True)
        inner = operators.intermediate(hidden_states, gates[i], ups[i], activation)
        largest.append((inner * routed).abs().max())
    return out, torch.stack(largest)


def fp8_experts(
    hidden_states,
    expert_routing_table,
    router_weights,
    w1,
    w2,
    w3,
    scale_hidden,
    scales_inner,
    scales_w1,
    scales_w2,
    scales_w3,
    permuted_weights,
    activation,
    first,
    last,
):
    """The mixture of experts of FP8 tensors; what goes into the last matrix is cast to FP8 too."""
    if any(w.dtype != FP8 for w in (hidden_states, *w1, *w2, *w3)):
        message = "mixture_of_experts.fp8 needs FP8 input and FP8 weights of every expert"
        raise RuntimeError(message)
    gates, ups, downs = (operators.as_inputs_by_outputs(w, permuted_weights) for w in (w1, w2, w3))
    x = hidden_states.float() * scale_hidden
    total = torch.zeros_like(x)
    for i, expert in enumerate(range(first, last + 1)):
        gate, up = gates[i].float() * scales_w1[i], ups[i].float() * scales_w2[i]
        inner = operators.intermediate(x, gate, up, activation)
        inner = to_fp8(inner, 1 / scales_inner[i], FP8).float() * scales_inner[i]
        part = operators.share(expert, expert_routing_table, router_weights).float()
        total = total + part * (inner @ (downs[i].float() * scales_w3[i]))
    return total.to(torch.bfloat16)


def _register(name: str, arguments: str, returns: str, function) -> None:
    operators.library.define(f"{name}({arguments}) -> {returns}")
    operators.library.impl(name, function, "CompositeExplicitAutograd")


# INC gives scales as tensors (scale_format const) or as numbers (scale_format scalar, its default).
for _suffix, _scale in (("", "Tensor?"), (".scalar", "float")):
    _cast = f"Tensor x, {_scale} scale, bool stochastic, bool is_amax, ScalarType dtype"
    _register(f"cast_to_fp8_v2{_suffix}", _cast, "(Tensor, Tensor)", cast_to_fp8)
    _uncast = f"Tensor x, {_scale} scale, ScalarType dtype"
    _register(f"cast_from_fp8{_suffix}", _uncast, "Tensor", cast_from_fp8)
    _register(f"fp8_gemm_v2{_suffix}", GEMM.format(scale=_scale), "Tensor", gemm)
for _suffix, _scale in (("fp8", "Tensor"), ("fp8_scalars", "float")):
    _arguments = f"{operators.INPUTS}, {SCALES.format(scale=_scale)}, {operators.OPTIONS}"
    _register(f"mixture_of_experts.{_suffix}", _arguments, "Tensor", fp8_experts)
_register(
    "mixture_of_experts.fp8_measurement",
    f"{operators.INPUTS}, {operators.OPTIONS}, bool measurement_mode",
    "(Tensor, Tensor)",
    measured_experts,
)
