"""From a plan to the plain configuration that INC reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from inc_mp_plugin.core.demands import Serving
from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.core.formats import FORMATS, converted_format
from inc_mp_plugin.core.graph import Graph
from inc_mp_plugin.core.plan import Plan
from inc_mp_plugin.inc.mixed_precision import mixed_precision_config
from inc_mp_plugin.inc.patterns import compress
from inc_mp_plugin.inc.selection import compare_selection, quantizable, selected
from inc_mp_plugin.targets import CPU_BF16, OPTIMUM_HABANA, VLLM_GAUDI, check_scale_method, get_target
from inc_mp_plugin.targets.layout import Captured, Layout
from inc_mp_plugin.targets.rules import check_adapters, modules_of
from inc_mp_plugin.targets.target import Target

_FP8 = {fp8.name: fp8.inc_name for fp8 in FORMATS.values() if fp8.inc_name}


def to_inc_config(
    plan: Plan, target: str, graph: Graph | None = None, scale_method: str | None = None
) -> dict[str, Any]:
    """Write a plan as an INC configuration that selects exactly the planned ops.

    The names are those of the consumer's modules. For Gaudi the file allows them and nothing else: what
    a name does not fit stays in the base format.

    Args:
        plan: from `solve`; how the model is served is the plan's, too.
        target: "optimum-habana" or "vllm-gaudi" on Gaudi, "cpu-qdq", or "cpu-bf16" for BF16 or FP16.
        graph: from `capture`. Without it, only the plan's own ops are known, what a consumer adds to
            them is not, and INC's selection is not checked.
        scale_method: how INC chooses its scales; the target's default if None.

    Returns:
        Keys of INC's only: for `FP8Config.from_json_file`, or of "cpu-bf16" for `quantize` itself.

    Raises:
        InputError: an unknown target, or formats that it cannot run beside the base format.
        SelectionError: the consumer cannot run this mix, or INC would quantize other modules.
    """
    captured = None if graph is None else Captured.of(graph)
    return config_of(
        plan.base,
        plan.formats,
        get_target(target),
        captured,
        scale_method=scale_method,
        serving=plan.serving,
    )


def config_of(
    base: str,
    formats: Mapping[str, str],
    consumer: Target,
    captured: Captured | None = None,
    *,
    scale_method: str | None = None,
    serving: Serving | None = None,
) -> dict[str, Any]:
    """Write formats of ops as an INC configuration; see `to_inc_config`.

    Args:
        base: the base format.
        formats: of every op that is decided, those in the base format included.
        consumer: of the file.
        captured: the model, as in `to_inc_config` its graph.
        scale_method: as in `to_inc_config`.
        serving: how the model is served; the defaults if None.
    """
    lowered = {op: format_name for op, format_name in formats.items() if format_name != base}
    if consumer.device is None:
        message = (
            f"target {consumer.name} reads no file of INC's, but a checkpoint: inc-mp export DIR --out MODEL"
        )
        raise InputError(message)
    if consumer is CPU_BF16:
        return mixed_precision_config(base, lowered, None if captured is None else captured.modules)
    lower = sorted(set(lowered.values()))
    if len(lower) > 1 or any(format_name not in _FP8 for format_name in lower):
        message = (
            f"the plan mixes {', '.join([base, *lower])}; INC runs one FP8 format per model beside "
            f"the base format ({', '.join(_FP8)}): solve with a single FP8 format"
        )
        raise InputError(message)
    serving = serving or Serving()
    layout = consumer.lay_out(captured or Captured(tuple(formats), {}), serving)
    planned = modules_of(layout, lowered, list(formats), serving=serving, target=consumer.name)
    config: dict[str, Any] = {
        "mode": "QUANTIZE",
        "observer": "maxabs",
        "fp8_config": _FP8[lower[0]] if lower else "E4M3",
        # The scripts of both consumers run the model in BF16, whatever it was calibrated in.
        "hp_dtype": "bf16" if consumer in (OPTIMUM_HABANA, VLLM_GAUDI) else converted_format(base),
        **_lists(planned),
        "dump_stats_path": f"./hqt_output/{_folder(consumer, serving)}/measure",
        "scale_method": check_scale_method(consumer, scale_method),
        **consumer.settings,
    }
    if captured is not None:
        check_adapters(captured.modules, [consumer.name])
        _check_selection(config, layout, planned, device=consumer.device, target=consumer.name)
    return config


def measure_config(config: Mapping[str, Any], consumer: Target) -> dict[str, Any]:
    """Make the configuration that measures for a QUANTIZE file.

    It measures everything, so that one measurement serves every plan.
    """
    nothing: dict[str, list[str]] = {"types": [], "names": []}
    whole = {**config, "mode": "MEASURE", "allowlist": nothing, "blocklist": nothing}
    if consumer is VLLM_GAUDI:
        whole["calibration_sample_interval"] = 1  # written as it goes: a killed server loses nothing
    return whole


def _folder(consumer: Target, serving: Serving) -> str:
    """Name the folder of a consumer's measurements.

    With another attention optimum-habana has other modules to measure, so each attention has its own folder.
    """
    return f"{consumer.name}-{serving.attention}" if consumer is OPTIMUM_HABANA else consumer.name


def _lists(planned: set[str]) -> dict[str, Any]:
    nothing: dict[str, list[str]] = {"types": [], "names": []}
    if not planned:  # an empty allow list would mean everything
        return {"allowlist": nothing, "blocklist": {"types": [], "names": [".*"]}}
    return {"allowlist": {"types": [], "names": compress(planned)}, "blocklist": nothing}


def _check_selection(
    config: dict[str, Any], layout: Layout, planned: set[str], *, device: str, target: str
) -> None:
    """Let INC's own code select from every tree that the consumer may have.

    INC must know each planned module in one of the trees; in the others the module has another name.
    """
    candidates = [set(quantizable(tree, device)) for tree in layout.trees]
    in_no_tree = planned.difference(*candidates)
    for tree, names in zip(layout.trees, candidates, strict=True):
        picked = set(selected(tree, config, device))
        compare_selection(planned & names | in_no_tree, picked, tree, target)
