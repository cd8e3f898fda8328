"""Attention kernels: fused attention in the tensors' own type and in FP8."""

import torch
from torch.nn.functional import scaled_dot_product_attention

from habana_frameworks.torch.fp8_operators import FP8, to_fp8


def _attend(query, key, value, mask, dropout, causal, scale):
    """Attention of shape (batch, heads, tokens, head size), with fewer key heads allowed."""
    if causal:
        mask = None
    elif mask is not None and mask.dtype != torch.bool:
        mask = mask.to(query.dtype)
    grouped = query.shape[1] != key.shape[1]
    return scaled_dot_product_attention(
        query, key, value, mask, dropout, is_causal=bool(causal), scale=scale, enable_gqa=grouped
    )


class FusedSDPA:
    """Fused attention in one type; differentiable."""

    @staticmethod
    def apply(query, key, value, mask=None, dropout=0.0, causal=False, scale=None, *options):
        """The options say how Gaudi computes it, not what."""
        return _attend(query, key, value, mask, dropout, causal, scale)


def fp8_fused_sdpa(
    q,
    k,
    v,
    attn_mask=None,
    dropout_p=0.0,
    is_causal=False,
    scale=None,
    softmax_mode="None",
    d_scale_q=None,
    d_scale_k=None,
    d_scale_v=None,
    q_scale_s=None,
    q_scale_o=None,
    d_scale_s=None,
    is_amax_s=False,
    valid_seq_len=None,
    seq_padding_type="None",
):
    """INC's call, for measurement (inputs as they are) and for FP8 inputs with their scales.

    The softmax stays in high precision here: what its FP8 form does to the numbers is not emulated.

    Returns:
        The attention (FP8 if the inputs are), and the largest softmax value, at most 1.
    """
    types = {q.dtype, k.dtype, v.dtype}
    if len(types) > 1:
        message = f"fp8_fused_sdpa needs one type, got {types}"
        raise RuntimeError(message)
    largest = torch.ones(())
    if q.dtype != FP8:
        return _attend(q, k, v, attn_mask, dropout_p, is_causal, scale), largest
    q, k, v = q.float() * d_scale_q, k.float() * d_scale_k, v.float() * d_scale_v
    return to_fp8(_attend(q, k, v, attn_mask, dropout_p, is_causal, scale), q_scale_o, FP8), largest


class RotaryPosEmbeddingHelperV2:
    """Must exist; optimum-habana uses plain torch for tensors on the CPU."""

    @staticmethod
    def apply(*args):
        message = "fused rotary embedding was called for a tensor on the CPU"
        raise NotImplementedError(message)


RotaryPosEmbeddingHelperV3 = RotaryPosEmbeddingHelperV2
