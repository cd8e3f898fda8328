"""The plan of a folder as a checkpoint that vLLM loads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inc_mp_plugin.core.costs import Costs
from inc_mp_plugin.core.errors import InputError, SelectionError, few
from inc_mp_plugin.core.literals import NoiseModel, Scheme
from inc_mp_plugin.core.plan import Interval
from inc_mp_plugin.export.groups import groups_of, unplaced
from inc_mp_plugin.export.settings import FORMAT, quantization_config
from inc_mp_plugin.pipeline.folder import Run
from inc_mp_plugin.pipeline.next_command import refuse_model_in_memory, solve_command
from inc_mp_plugin.report.text import span
from inc_mp_plugin.runtime.lock import exclusive
from inc_mp_plugin.runtime.progress import say
from inc_mp_plugin.scales.methods import INPUT, Scales
from inc_mp_plugin.solver.uncertainty import predict
from inc_mp_plugin.stages.consumer_scales import method_on_a_cpu
from inc_mp_plugin.stages.sensitivity import measured_from, noise_of
from inc_mp_plugin.targets import VLLM
from inc_mp_plugin.targets.layout import Captured

if TYPE_CHECKING:
    from inc_mp_plugin.export.checkpoint import Checkpoint
    from inc_mp_plugin.export.places import Place
    from inc_mp_plugin.model.expert_stacks import Order


@dataclass(frozen=True, slots=True)
class Exported:
    """A checkpoint that was written: its ops in FP8, and why other planned ops stay in the base format."""

    folder: Path
    lowered: tuple[str, ...]
    left: dict[str, str]
    yardstick: str
    predicted: float
    interval: Interval | None
    priced: str

    @property
    def lines(self) -> list[str]:
        """Lines that tell a user about it."""
        counts: dict[str, list[str]] = {}
        for op, why in self.left.items():
            counts.setdefault(why, []).append(op)
        unit = "KL divergence, nats per token" if self.yardstick == "kl" else "loss MSE"
        ends = "" if self.interval is None else f", interval {span(self.interval, '.4g')}"
        return [
            f"{self.folder}: {len(self.lowered)} linear ops in FP8",
            *(
                f"{len(ops)} planned ops stay in the base format: {why} ({few(ops)})"
                for why, ops in counts.items()
            ),
            f"Predicted of this checkpoint ({unit}): {self.predicted:.4g}{ends}",
            self.priced,
        ]


@exclusive
def export_plan(folder: Path, out: Path, scheme: Scheme) -> Exported:
    """Write the plan of a folder as a checkpoint of compressed-tensors.

    Args:
        folder: of the run.
        out: new folder of the checkpoint.
        scheme: scales of activations: "dynamic" or "static".

    Raises:
        InputError: the model's files are not there, not those that were measured, or no safetensors; `out`
            holds files; or the inputs were not measured for static scales.
        SelectionError: vLLM would fail on the checkpoint: a module of its would be in FP8 in part.
    """
    from inc_mp_plugin.export.folder import Content, check_free, write_checkpoint
    from inc_mp_plugin.export.scales import static_scales

    check_free(out)
    run = Run(folder)
    lowered, left = linear_part(run)
    inputs = _inputs(run, lowered) if scheme == "static" else {}
    written = PlacedPlan.of(run, lowered)
    scales = None
    if scheme == "static":
        method = Scales(method_on_a_cpu(run.job.scale_method), "cpu")
        scales = static_scales(
            written.source, written.in_fp8, inputs, method, base=run.plan.base, captured=written.linear
        )
    settings = quantization_config(scheme, written.modules, written.others)
    write_checkpoint(Content(written.source, written.in_fp8, scales, settings), out)
    return _exported(run, out, lowered, left, scheme)


@dataclass(frozen=True)
class PlacedPlan:
    """A plan in the checkpoint that was measured.

    `linear` are the linear ops of the model, `in_fp8` the places of those in FP8, and `others` all other
    linear modules.
    """

    source: Checkpoint
    linear: Captured
    in_fp8: Mapping[str, Place]
    others: frozenset[str]

    @staticmethod
    def of(run: Run, lowered: Sequence[str]) -> PlacedPlan:
        """Place the linear ops of a plan.

        Raises:
            InputError: the model's files are not there, not those that were measured, or no safetensors.
            SelectionError: vLLM would fail on a checkpoint of the plan, or an op has no place in one.
        """
        from inc_mp_plugin.export.places import linear_modules, places_of

        captured = Captured.of(run.graph)
        linear = Captured(
            tuple(op.name for op in run.graph.ops if op.kind == "linear"), captured.modules, captured.tied
        )
        _check_groups(run, linear, lowered)
        source = _source(run)
        places, reasons = places_of(linear.ops, source, _orders(run))
        homeless = [op for op in lowered if op in reasons]
        if homeless:
            message = f"no checkpoint was made: {homeless[0]!r} is planned in FP8, but {reasons[homeless[0]]}"
            raise SelectionError(message)
        in_fp8 = {op: places[op] for op in lowered}
        modules = {place.module for place in in_fp8.values()}
        others = {op for op in linear.ops if op in captured.tied and op in reasons}
        others |= set(linear_modules(source, captured.modules, places)) - modules
        return PlacedPlan(source, linear, in_fp8, frozenset(others))

    @property
    def modules(self) -> set[str]:
        """The checkpoint's names of the modules in FP8."""
        return {place.module for place in self.in_fp8.values()}


def linear_part(run: Run) -> tuple[list[str], dict[str, str]]:
    """Split a plan's ops below the base format into those that are written in FP8, and those that are not.

    Raises:
        InputError: the plan lowers an op to another format, or no linear one.
    """
    lowered, left = [], dict[str, str]()
    for op in (op for op in run.graph.ops if op.name in run.plan.lowered):
        format_name = run.plan.formats[op.name]
        if format_name != FORMAT:
            message = (
                f"the plan has {op.name!r} in {format_name}; a checkpoint for vLLM holds {FORMAT} alone: "
                f"tune with formats: [{FORMAT}]"
            )
            raise InputError(message)
        if op.kind != "linear":
            left[op.name] = f"a checkpoint holds no product in FP8 ({op.kind})"
        elif op.tied:
            left[op.name] = "its weight is used elsewhere, too"
        else:
            lowered.append(op.name)
    if not lowered:
        message = f"the plan of {run.folder} has no linear op in FP8 that a checkpoint could hold"
        raise InputError(message)
    if run.plan.serving.kv_cache == "fp8":
        say("the plan is for a KV cache in FP8, which has no scales in a checkpoint: it stays as it is")
    return lowered, left


def _check_groups(run: Run, linear: Captured, lowered: Sequence[str]) -> None:
    """Refuse a plan that vLLM would fail on.

    Raises:
        SelectionError: an op that vLLM is not known to have a module for, or a group in FP8 in part.
    """
    homeless = unplaced(linear)
    faults = [f"{op}: {homeless[op]}" for op in lowered if op in homeless]
    faults += filter(None, (group.fault(lowered) for group in groups_of(linear)))
    if faults:
        targets = tuple(dict.fromkeys([*run.plan.targets, VLLM.name]))
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        command = solve_command(run.folder, run.solved_again(targets=targets))
        message = (
            f"no checkpoint was made: {faults[0]}{more}; solve with {VLLM.name} among the targets, "
            f"then export again: {command}"
        )
        raise SelectionError(message)


def _inputs(run: Run, lowered: list[str]) -> dict[str, float]:
    """Return the maxabs of the inputs of ops.

    Raises:
        InputError: it was not measured.
    """
    maxabs = run.sensitivity.maxabs.get(INPUT)
    if maxabs is None:
        message = (
            "--scheme static needs the largest inputs of the ops, which sensitivity.npz of "
            f"{run.folder} does not hold; measure them in a new folder: inc-mp tune "
            f"{run.folder / 'recipe.json'} --out NEW, or give --scheme dynamic"
        )
        raise InputError(message)
    measured = dict(zip(run.sensitivity.ops, maxabs.tolist(), strict=True))
    return {op: measured[op] for op in lowered}


def _source(run: Run) -> Checkpoint:
    """Read the headers of the checkpoint that was measured.

    Raises:
        InputError: it is no folder with whole safetensors files, is quantized already, or has changed.
    """
    from inc_mp_plugin.export.checkpoint import read_checkpoint
    from inc_mp_plugin.model.adapters import is_adapter
    from inc_mp_plugin.model.checkpoint import folder_of
    from inc_mp_plugin.model.loading import model_fingerprint

    model = run.recipe.model
    refuse_model_in_memory(model)
    if model.weights != "trained" or is_adapter(model.name_or_path):
        message = (
            f"{model.name_or_path} holds no weights of the whole model; save it, an adapter merged into its "
            "base, with save_pretrained, and tune that folder"
        )
        raise InputError(message)
    checkpoint = read_checkpoint(folder_of(model.name_or_path))
    if "quantization_config" in checkpoint.config:
        message = f"{checkpoint.folder} is quantized already; tune and export its original in BF16"
        raise InputError(message)
    now = model_fingerprint(model.name_or_path, trust_remote_code=model.trust_remote_code)
    if measured_from(run.folder).get("model") != now:
        message = f"{model.name_or_path} is not the model that was measured; run `inc-mp tune` again"
        raise InputError(message)
    return checkpoint


def _orders(run: Run) -> Callable[[str], Order | str]:
    """Return a function that looks the order of a stack of experts up, in the model without weights."""

    @cache
    def empty() -> Any:
        from inc_mp_plugin.pipeline.data import subject_without_weights

        return subject_without_weights(run.recipe).model

    def order_of_module(name: str) -> Order | str:
        from inc_mp_plugin.model.expert_stacks import order_of

        return order_of(empty().get_submodule(name))

    return cache(order_of_module)


def _exported(run: Run, out: Path, lowered: list[str], left: dict[str, str], scheme: Scheme) -> Exported:
    """Predict what is written, anew: without what stays in the base format, and with a cache in it."""
    planned = run.as_planned
    costs = Costs(planned.losses.sensitivity, planned.losses.noise)
    yardstick = planned.yardstick
    formats = {op: FORMAT if op in lowered else run.plan.base for op in run.plan.formats}
    model = costs.kl if yardstick == "kl" and costs.kl is not None else costs.measured_loss
    value, interval = predict(model, formats, run.plan.base, level=run.plan.confidence)
    priced = _priced(run, planned.losses.noise, scheme)
    return Exported(out, tuple(lowered), left, yardstick, value, interval, priced)


def _priced(run: Run, noise: NoiseModel, scheme: Scheme) -> str:
    """Say what rounding the prediction prices, and how the one that is written could be priced."""
    measured = noise_of(run.folder)
    how = f"tune in a new folder with 'targets=[{VLLM.name}]' noise=measured to price it"
    if noise != "measured" or measured is None:
        return f"It prices rounding by noise: {noise}, not by the rounding of scheme {scheme}; {how}"
    if measured == (scheme, VLLM.name):
        return f"It prices the rounding of scheme {scheme}"
    end = f"; {how}" if scheme in VLLM.scale_methods else ""
    return f"It prices {measured[0]} of {measured[1]}, not the rounding of scheme {scheme}{end}"
