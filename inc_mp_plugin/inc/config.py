"""From a plan to the plain configuration that INC reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from inc_mp_plugin.errors import InputError
from inc_mp_plugin.inc.mixed_precision import mixed_precision_config
from inc_mp_plugin.inc.patterns import compress
from inc_mp_plugin.inc.selection import compare_selection, quantizable, selected
from inc_mp_plugin.plan import Plan
from inc_mp_plugin.targets import check_scale_method, get_target
from inc_mp_plugin.targets.cpu import CPU_BF16

_FP8 = {"fp8_e4m3": "E4M3", "fp8_e5m2": "E5M2"}


def to_inc_config(
    plan: Plan, target: str, modules: Mapping[str, str] | None = None, scale_method: str | None = None
) -> dict[str, Any]:
    """Write a plan as an INC configuration that selects exactly the planned ops.

    Args:
        plan: from `solve`.
        target: "cpu-qdq" or "optimum-habana" for FP8, "cpu-bf16" for BF16 or FP16.
        modules: all modules of the model, {name: class}, from `Graph.modules`; what INC could
            quantize among them and the plan does not mention stays in the base format. Without it,
            only the plan's own ops are known and INC's selection is not checked.
        scale_method: how INC chooses its scales; the target's default if None.

    Returns:
        Keys of INC's only: for `FP8Config.from_json_file`, or of "cpu-bf16" for `quantize` itself.

    Raises:
        InputError: an unknown target, or formats that it cannot run beside the base format.
        SelectionError: INC would quantize other modules than the plan's.
    """
    return config_of(plan.base, plan.formats, target, modules, scale_method)


def config_of(
    base: str,
    formats: Mapping[str, str],
    target: str,
    modules: Mapping[str, str] | None = None,
    scale_method: str | None = None,
) -> dict[str, Any]:
    """Write formats of ops as an INC configuration; see `to_inc_config`.

    Args:
        base: the base format.
        formats: of every op that is decided, those in the base format included.
        target: as in `to_inc_config`.
        modules: as in `to_inc_config`.
        scale_method: as in `to_inc_config`.
    """
    consumer = get_target(target)
    lowered = {op: format for op, format in formats.items() if format != base}
    if consumer is CPU_BF16:
        return mixed_precision_config(base, lowered, modules)
    low = sorted(set(lowered.values()))
    if len(low) > 1 or any(format not in _FP8 for format in low):
        message = (
            f"the plan mixes {', '.join([base, *low])}; INC runs one FP8 format per model beside "
            f"the base format ({', '.join(_FP8)}): solve with a single FP8 format"
        )
        raise InputError(message)
    tree = None if modules is None else consumer.modules(modules)
    wanted = set(lowered)
    blocked = [op for op in formats if op not in wanted]
    if tree is not None:
        candidates = quantizable(tree, consumer.device, consumer.undecided)
        blocked = [name for name in candidates if name not in wanted]
    config: dict[str, Any] = {
        "mode": "QUANTIZE",
        "observer": "maxabs",
        "fp8_config": _FP8[low[0]] if low else "E4M3",
        "hp_dtype": base,
        "allowlist": {"types": [], "names": []},
        "blocklist": {
            "types": list(consumer.undecided),
            # With nothing planned, block whatever else the consumer may bring along as well.
            "names": compress(blocked) if wanted else [".*"],
        },
        "dump_stats_path": "./hqt_output/measure",
        "scale_method": check_scale_method(consumer, scale_method),
        **consumer.settings,
    }
    if tree is not None:
        _check_selection(config, tree, wanted, target)
    return config


def _check_selection(config: dict[str, Any], tree: Mapping[str, str], wanted: set[str], target: str) -> None:
    compare_selection(wanted, set(selected(tree, config, get_target(target).device)), tree, target)
