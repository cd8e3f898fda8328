"""INC on a CPU: FP8 values with products in the base format, or products in BF16."""

from inc_mp_plugin.targets.target import Target

# INC refuses anything but QDQ on a CPU, and its default scale method (maxabs_hw) fails there.
CPU_QDQ = Target(
    name="cpu-qdq",
    device="cpu",
    settings={"use_qdq": "True"},
    undecided=("EmbeddingBag",),
    added={},
    scale_methods=("maxabs_arbitrary", "maxabs_pow2", "act_maxabs_pow2_weights_pcs_maxabs_pow2"),
)

# INC's mixed precision wraps linear layers and convolutions; a wrapper returns FP32, so that is the base.
CPU_BF16 = Target(
    name="cpu-bf16",
    device="cpu",
    settings={},
    undecided=(),
    added={},
    formats=("bf16", "fp16"),
    kinds=("linear", "conv2d"),
    base="fp32",
)
