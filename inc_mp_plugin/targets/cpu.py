"""INC on a CPU: FP8 values with products in the base format, or products in BF16."""

from inc_mp_plugin.core.demands import Serving
from inc_mp_plugin.targets.layout import Captured, Layout
from inc_mp_plugin.targets.target import Target


def lay_out(captured: Captured, serving: Serving) -> Layout:
    """Lay a captured model out as it is: every op is a module of it.

    There is no KV cache that INC could quantize.
    """
    del serving
    return Layout((captured.modules,), {op: (op,) for op in captured.ops})


# INC refuses anything but QDQ on a CPU, and its default scale method (maxabs_hw) fails there.
CPU_QDQ = Target(
    name="cpu-qdq",
    device="cpu",
    lay_out=lay_out,
    settings={"use_qdq": "True"},
    scale_methods=("maxabs_arbitrary", "maxabs_pow2", "act_maxabs_pow2_weights_pcs_maxabs_pow2"),
)

# INC's mixed precision wraps linear layers and convolutions; a wrapper returns FP32, so that is the base.
CPU_BF16 = Target(
    name="cpu-bf16",
    device="cpu",
    lay_out=lay_out,
    formats=("bf16", "fp16"),
    kinds=("linear", "conv2d"),
    base="fp32",
)
