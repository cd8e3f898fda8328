"""The plan of a folder, measured in vLLM: its checkpoint against that of the base model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inc_mp_plugin.core.errors import InputError, few
from inc_mp_plugin.export.check import check_checkpoint
from inc_mp_plugin.export.checkpoint import read_config, read_tensors
from inc_mp_plugin.export.rules import Facts
from inc_mp_plugin.export.schemes import Settings
from inc_mp_plugin.pipeline.export import PlacedPlan, linear_part
from inc_mp_plugin.pipeline.folder import Run
from inc_mp_plugin.pipeline.own_loss import AUTO
from inc_mp_plugin.runtime.lock import exclusive

if TYPE_CHECKING:
    from inc_mp_plugin.core.results import Validation

_KEYS = {"input_ids", "attention_mask", "labels"}


@exclusive
def validate_served(folder: Path, model: Path, *, python: str, dtype: str = "auto") -> Validation:
    """Measure the plan of a folder in vLLM, on held-out samples: validation.json.

    The base model and the plan's checkpoint run in vLLM in turn, and their logits are compared.

    Args:
        folder: of the run.
        model: folder of the plan's checkpoint, from `export_plan`.
        python: of the environment that has vLLM.
        dtype: that both run in, in vLLM's words; "auto" for that of the checkpoint.

    Raises:
        InputError: the checkpoint is damaged, or of another plan; the samples are no plain text; or vLLM is
            not there, does not load a checkpoint, or skips tensors of it.
        SelectionError: the plan cannot be a checkpoint.
        NonFiniteError: vLLM gives NaN.
    """
    from inc_mp_plugin.stages.loss_meter import LossMeter
    from inc_mp_plugin.stages.through_vllm import ThroughVllm
    from inc_mp_plugin.stages.validation import validation_stage

    run = Run(folder)
    lowered, _ = linear_part(run)
    placed = PlacedPlan.of(run, lowered)
    _check_is_plan(model, placed.modules)
    heldout = run.meter.samples
    if run.recipe.loss != AUTO or not _is_language_model(placed.source.config):
        message = "vLLM gives the logits of language models alone; measure this plan through hooks"
        raise InputError(message)
    length = _longest(run.meter.heldout)
    server = ThroughVllm(python, placed.source.folder, model, length, dtype)
    meter = LossMeter(
        run.job,
        replace(heldout, random_plans=0),
        run.subject,
        run.graph,
        ops=run.losses.ops,
        out=folder,
        server=server,
    )
    formats = {op: run.plan.formats[op] if op in lowered else run.plan.base for op in run.plan.formats}
    try:
        return validation_stage(meter, run.as_planned.losses, replace(run.plan, formats=formats), folder)
    finally:
        server.stop()


def _check_is_plan(model: Path, planned: set[str]) -> None:
    """Check that a checkpoint is whole, and of a plan.

    Raises:
        InputError: it is not.
    """
    report = check_checkpoint(model)
    if report.faults:
        raise InputError("\n".join(report.faults))
    tensors, _ = read_tensors(model)
    quantized = Facts(tensors, Settings.of(read_config(model), str(model))).quantized
    if quantized != planned:
        others = sorted(quantized ^ planned)
        message = (
            f"{model} is not of this plan: {few(others)} differ; export the plan again: inc-mp export DIR "
            "--out MODEL"
        )
        raise InputError(message)


def _is_language_model(config: Any) -> bool:
    return any(str(name).endswith("ForCausalLM") for name in config.get("architectures") or ())


def _longest(batches: Iterable[Any]) -> int:
    """Return the largest number of tokens of a sample.

    Raises:
        InputError: a batch is no plain text.
    """
    length = 0
    for batch in batches:
        others = sorted(set(batch) - _KEYS) if isinstance(batch, dict) else ["no dict"]
        if others:
            message = f"vLLM is given token ids alone, and the samples hold {few(others)}"
            raise InputError(message)
        length = max(length, batch["input_ids"].shape[1])
    return length
