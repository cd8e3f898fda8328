"""Writing the INC file of a target."""

from __future__ import annotations

from pathlib import Path

from inc_mp_plugin import store
from inc_mp_plugin.errors import SelectionError
from inc_mp_plugin.plan import Graph, Plan
from inc_mp_plugin.progress import say
from inc_mp_plugin.targets import get_target


def emit(plan: Plan, graph: Graph, target: str, out: Path, scale_method: str | None = None) -> Path:
    """configs/<target>.json, made anew: refused unless INC would select exactly the plan.

    Raises:
        InputError: an unknown target, or formats that INC cannot mix.
        SelectionError: INC would select other ops than the plan's.
    """
    from inc_mp_plugin.inc.config import to_inc_config

    fused = [one.name for one in graph.unsupported if one.fused_experts]
    if fused and get_target(target).splits_experts:
        message = (
            f"no {target} file was made: it holds the experts of {fused[0]} as modules of their own, "
            "which this graph does not name, so INC would quantize them unplanned"
        )
        raise SelectionError(message)
    path = out / "configs" / f"{target}.json"
    path.unlink(missing_ok=True)  # never leave the file of another plan behind
    store.write_json(path, to_inc_config(plan, target, graph.modules, scale_method))
    say(f"configs/{path.name}: INC selects exactly the {len(plan.quantized)} ops of the plan")
    return path
