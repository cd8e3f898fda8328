"""The keys that INC knows, and the name of ours."""

from __future__ import annotations

from inc_mp_plugin.core.literals import Strategy
from inc_mp_plugin.inc.backend import keys_of

NAME: Strategy = "ip_mse"

# Keys that INC reads from its JSON although FP8Config has no argument of that name.
_OTHER_INC_KEYS = {
    "whitelist",
    "blacklist",
    "recalc_scales",
    "device_for_scales",
    "ignore_modules_wo_measures",
    "calibration_sample_interval",
    "dynamic_quantization",
    "row_parallel_linear_allreduce_quantization",
    "seperate_measure_files",
}


def inc_keys() -> set[str]:
    """List the keys that INC knows; INC takes any other key without a word."""
    from neural_compressor.torch.quantization.config import FP8Config

    return keys_of(FP8Config()).keys() | _OTHER_INC_KEYS
