"""From a plan to the plain FP8 JSON that INC reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from inc_mp_plugin.errors import InputError, SelectionError
from inc_mp_plugin.inc.patterns import compress
from inc_mp_plugin.inc.selection import quantizable, selected
from inc_mp_plugin.plan import Plan
from inc_mp_plugin.targets import get_target

_FP8 = {"fp8_e4m3": "E4M3", "fp8_e5m2": "E5M2"}


def to_inc_config(plan: Plan, target: str, modules: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Write a plan as an INC FP8 configuration that selects exactly the planned ops.

    Args:
        plan: from `solve`.
        target: "cpu-qdq" or "optimum-habana".
        modules: all modules of the model, {name: class}, from `Graph.modules`; what INC could
            quantize among them and the plan does not mention stays in the base format. Without it,
            only the plan's own ops are known and INC's selection is not checked.

    Returns:
        Keys of INC's only, for `FP8Config.from_json_file`.

    Raises:
        InputError: an unknown target, or formats that INC cannot mix in one model.
        SelectionError: INC would quantize other modules than the plan's.
    """
    consumer = get_target(target)
    low = sorted({plan.formats[op] for op in plan.quantized})
    if len(low) > 1 or any(format not in _FP8 for format in low):
        message = (
            f"the plan mixes {', '.join([plan.base, *low])}; INC runs one FP8 format per model beside "
            f"the base format ({', '.join(_FP8)}): solve with a single FP8 format"
        )
        raise InputError(message)
    tree = None if modules is None else consumer.modules(modules)
    wanted = set(plan.quantized)
    blocked = [op for op in plan.formats if op not in wanted]
    if tree is not None:
        candidates = quantizable(tree, consumer.device, consumer.undecided)
        blocked = [name for name in candidates if name not in wanted]
    config: dict[str, Any] = {
        "mode": "QUANTIZE",
        "observer": "maxabs",
        "fp8_config": _FP8[low[0]] if low else "E4M3",
        "hp_dtype": plan.base,
        "allowlist": {"types": [], "names": []},
        "blocklist": {
            "types": list(consumer.undecided),
            # With nothing planned, block whatever else the consumer may bring along as well.
            "names": compress(blocked) if wanted else [".*"],
        },
        "dump_stats_path": "./hqt_output/measure",
        **consumer.settings,
    }
    if tree is not None:
        _check_selection(config, tree, wanted, target)
    return config


def _check_selection(config: dict[str, Any], tree: Mapping[str, str], wanted: set[str], target: str) -> None:
    picked = set(selected(tree, config, get_target(target).device))
    missing, extra = sorted(wanted - picked), sorted(picked - wanted)
    if missing or extra:
        parts = []
        if missing:
            kinds = sorted({tree.get(name, "not in the model") for name in missing})
            parts.append(f"INC would not quantize {_few(missing)} (class {', '.join(kinds)})")
        if extra:
            parts.append(f"INC would also quantize {_few(extra)}")
        message = f"no {target} file was made: {'; '.join(parts)}"
        raise SelectionError(message)


def _few(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
