"""Automatic mixed precision for inference, for Intel Neural Compressor: the public names.

Importing the package loads neither torch nor INC; each name is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inc_mp_plugin.errors import InfeasibleError as InfeasibleError
    from inc_mp_plugin.errors import InputError as InputError
    from inc_mp_plugin.errors import NonFiniteError as NonFiniteError
    from inc_mp_plugin.errors import PluginError as PluginError
    from inc_mp_plugin.gain.bench import TimingSettings as TimingSettings
    from inc_mp_plugin.gain.bit_operations import bit_operation_gains as bit_operation_gains
    from inc_mp_plugin.gain.macs import mac_gains as mac_gains
    from inc_mp_plugin.gain.memory import memory_gains as memory_gains
    from inc_mp_plugin.gain.roofline import Phase as Phase
    from inc_mp_plugin.gain.roofline import roofline_gains as roofline_gains
    from inc_mp_plugin.gains import Gains as Gains
    from inc_mp_plugin.graph.capture import capture as capture
    from inc_mp_plugin.inc.config import to_inc_config as to_inc_config
    from inc_mp_plugin.inc.convert import apply as apply
    from inc_mp_plugin.inc.strategy import IPMSEConfig as IPMSEConfig
    from inc_mp_plugin.inc.strategy import register as register
    from inc_mp_plugin.measured_time import time_gains as time_gains
    from inc_mp_plugin.op_values import OpValues as OpValues
    from inc_mp_plugin.pipeline import tune as tune
    from inc_mp_plugin.plan import Graph as Graph
    from inc_mp_plugin.plan import Plan as Plan
    from inc_mp_plugin.pricing import Clock as Clock
    from inc_mp_plugin.qat.finetune import finetune as finetune
    from inc_mp_plugin.qat.layers import in_formats as in_formats
    from inc_mp_plugin.qat.layers import quantized as quantized
    from inc_mp_plugin.request import Request as Request
    from inc_mp_plugin.sensitivities import Sensitivity as Sensitivity
    from inc_mp_plugin.sensitivity.alps import measure_alps as measure_alps
    from inc_mp_plugin.sensitivity.alps import (
        measure_alps_without_training as measure_alps_without_training,
    )
    from inc_mp_plugin.sensitivity.eagl import measure_eagl as measure_eagl
    from inc_mp_plugin.sensitivity.scales import Scales as Scales
    from inc_mp_plugin.sensitivity.taylor import measure_sensitivity as measure_sensitivity
    from inc_mp_plugin.solver.baselines import baseline as baseline
    from inc_mp_plugin.solver.frontier import frontier as frontier
    from inc_mp_plugin.solver.planner import solve as solve
    from inc_mp_plugin.stages import Noise as Noise

_HOMES = {
    "errors": ("InfeasibleError", "InputError", "NonFiniteError", "PluginError"),
    "gain.bench": ("TimingSettings",),
    "gain.bit_operations": ("bit_operation_gains",),
    "gain.macs": ("mac_gains",),
    "gain.memory": ("memory_gains",),
    "gain.roofline": ("Phase", "roofline_gains"),
    "gains": ("Gains",),
    "graph.capture": ("capture",),
    "inc.config": ("to_inc_config",),
    "inc.convert": ("apply",),
    "inc.strategy": ("IPMSEConfig", "register"),
    "measured_time": ("time_gains",),
    "op_values": ("OpValues",),
    "pipeline": ("tune",),
    "plan": ("Graph", "Plan"),
    "serving": ("Serving",),
    "sensitivities": ("Sensitivity",),
    "targets.rules": ("demands",),
    "pricing": ("Clock",),
    "qat.finetune": ("finetune",),
    "qat.layers": ("in_formats", "quantized"),
    "request": ("Request",),
    "sensitivity.alps": ("measure_alps", "measure_alps_without_training"),
    "sensitivity.eagl": ("measure_eagl",),
    "sensitivity.scales": ("Scales",),
    "sensitivity.taylor": ("measure_sensitivity",),
    "solver.baselines": ("baseline",),
    "solver.frontier": ("frontier",),
    "solver.planner": ("solve",),
    "stages": ("Noise",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    """Load a public name from its home."""
    if name not in _HOME_OF:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
