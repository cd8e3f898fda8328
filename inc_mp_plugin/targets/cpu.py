"""INC on a CPU: FP8 values, products in the base format (quantize-dequantize)."""

from inc_mp_plugin.targets.target import Target

# INC refuses anything but QDQ on a CPU, and its default scale method (maxabs_hw) fails there.
CPU_QDQ = Target(
    name="cpu-qdq",
    device="cpu",
    settings={"use_qdq": "True", "scale_method": "maxabs_arbitrary"},
    undecided=("EmbeddingBag",),
    added={},
)
