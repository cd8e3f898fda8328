"""vLLM on any hardware: it loads a checkpoint of the plan, and no file of INC's."""

from __future__ import annotations

from inc_mp_plugin.core.demands import Serving
from inc_mp_plugin.targets.layout import Captured, Layout
from inc_mp_plugin.targets.target import Target
from inc_mp_plugin.targets.vllm_gaudi import lay_out as lay_out_on_gaudi


def lay_out(captured: Captured, serving: Serving) -> Layout:
    """Lay a captured model out as vLLM holds it; see `Layout`."""
    return lay_out_on_gaudi(captured, serving)


VLLM = Target(
    name="vllm",
    device=None,
    lay_out=lay_out,
    formats=("fp8_e4m3",),
    kinds=("linear",),
    scale_methods=("dynamic",),
)
