"""NVIDIA ModelOpt's AutoQuantize by gradients: its scores of FP8, and the plans that its own search picks.

    python peer_modelopt.py TASK.json RESULT.json

Its score of a group is sum (dL/dY (Y_fp8 - Y))^2 over batches, tokens and channels of the outputs Y of the
group's modules, L the mean loss of a batch. The search is an integer program for CBC. Both are read by its
public functions: the state that `auto_quantize` returns, and `get_auto_quantize_config` for other budgets.
A disabled head counts in its effective bits, so the budgets are counted with it.

CBC's tolerances are absolute, and the scores of a mean loss are tiny: its answers are far from the best. So
it is asked a second time, with scores a million times as large, as a loss times 1000 would give them.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import modelopt.torch.quantization as mtq
import torch
from modelopt.torch.quantization.algorithms import AutoQuantizeGradientSearcher
from task import GROUPINGS, Task, groups_of, key
from transformers import AutoModelForCausalLM

RULES = AutoQuantizeGradientSearcher.quant_grouping_rules


def search(task: Task, grouping: str) -> dict[str, Any]:
    """Run its search once; the state holds the scores."""
    # A documented way to change its groups; without rules every module is a group.
    AutoQuantizeGradientSearcher.quant_grouping_rules = RULES if grouping == "fused" else []
    model = AutoModelForCausalLM.from_pretrained(task.model, dtype=torch.float32).eval()
    names = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    rows = torch.tensor(task.rows)
    batches = [{"input_ids": ids, "labels": ids} for ids in rows.split(task.batch_size)]
    _, state = mtq.auto_quantize(
        model,
        constraints={"effective_bits": bits(task, max(task.shares))},
        quantization_formats=[mtq.FP8_DEFAULT_CFG],
        data_loader=batches,
        forward_step=lambda model, batch: model(**batch, use_cache=False),
        loss_func=lambda output, batch: output.loss,
        disabled_layers=sorted(names - set(task.elements)),
        num_calib_steps=len(batches),
        num_score_steps=len(batches),
        verbose=False,
    )
    return state


def bits(task: Task, share: float) -> float:
    """Count the effective bits of all linear ops where this share of the memory is gained."""
    return 16.0 - 8.0 * share * task.total / (task.total + task.others)


def scores(state: dict[str, Any]) -> dict[str, tuple[tuple[str, ...], float]]:
    """Read {group: (its modules, its score in FP8)}; a group with one format was disabled."""
    return {
        name: (tuple(stats["module_names"]), float(stats["scores"][0]))
        for name, stats in state["candidate_stats"].items()
        if len(stats["formats"]) > 1
    }


def scaled(state: dict[str, Any], factor: float) -> dict[str, Any]:
    """Multiply all scores."""
    stats = {
        name: {**entry, "scores": [factor * score for score in entry["scores"]]}
        for name, entry in state["candidate_stats"].items()
    }
    return {**state, "candidate_stats": stats}


def plan(task: Task, state: dict[str, Any], share: float) -> list[str]:
    """Let its own search pick again for a share of the memory; return the modules in FP8."""
    config = mtq.get_auto_quantize_config(state, {"effective_bits": bits(task, share)})
    end = ".weight_quantizer"
    entries = (entry for entry in config["quant_cfg"] if entry.get("enable", True))
    names = [entry["quantizer_name"] for entry in entries]
    return [name.removesuffix(end) for name in names if name.endswith(end) and "*" not in name]


def main() -> None:
    """Write scores of ops, and plans of both groupings."""
    task = Task.load(Path(sys.argv[1]))
    result: dict[str, Any] = {"version": version("nvidia-modelopt"), "plans": {}, "seconds": {}}
    for grouping in GROUPINGS:
        start = time.process_time()
        state = search(task, grouping)
        result["seconds"][grouping] = round(time.process_time() - start, 1)
        groups = scores(state)
        ours = set(map(frozenset, groups_of(task.elements, grouping).values()))
        theirs = {frozenset(modules) for modules, _ in groups.values()}
        counted = state["cost_denominator"]
        if counted != task.total + task.others:
            sys.exit(f"it counts {counted} weight elements, and we count {task.total + task.others}")
        if theirs != ours:
            sys.exit(f"its groups ({grouping}) are others: {[sorted(group) for group in theirs ^ ours]}")
        if grouping == "op":
            result["scores"] = {modules[0]: score for modules, score in groups.values()}
        result["plans"][grouping] = {
            title: {key(share): plan(task, scaled(state, factor), share) for share in task.shares}
            for title, factor in (("its own", 1.0), ("its own, loss x 1000", 1e6))
        }
    Path(sys.argv[2]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
