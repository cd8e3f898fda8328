"""Measured values in words: how well a prediction did, and which part of a plan was not measured."""

from __future__ import annotations

from collections.abc import Sequence

from inc_mp_plugin.core.literals import Through
from inc_mp_plugin.core.plan import Interval, Plan
from inc_mp_plugin.core.results import KLPoint, KLValidation, Point, Validation
from inc_mp_plugin.core.verdicts import Measured, Thresholds
from inc_mp_plugin.report.changed_words import threshold_in_words
from inc_mp_plugin.report.text import has_tau, span
from inc_mp_plugin.targets import get_target


def way(through: Through, targets: Sequence[str]) -> str:
    """Say what lowered ops: INC, or hooks that round as it does, or as the server that a plan is for.

    Args:
        through: what lowered them.
        targets: consumers of the plan, the first of which decides.

    Example:
        >>> way("hooks", ("vllm", "cpu-qdq")), way("hooks", ("cpu-qdq",)), way("inc", ())
        ('hooks that round as vllm does', 'hooks that round as INC does', 'INC')
    """
    servers = [name for name in targets[:1] if get_target(name).device is None]
    hooks = f"hooks that round as {servers[0] if servers else 'INC'} does"
    return {"inc": "INC", "hooks": hooks, "vllm": "vLLM itself"}[through]


def without_cache(plan: Plan) -> bool:
    """Tell if losses are measured of a plan's ops alone: INC has no KV cache to put in FP8 on a CPU."""
    return plan.serving.kv_cache == "fp8"


def with_interval(value: float, interval: Interval | None, form: str = ".4g") -> str:
    """Format a measured value with the ends of its interval.

    Args:
        value: the measured value.
        interval: of the value; None where there is none.
        form: format specification of each number.

    Example:
        >>> with_interval(0.002, Interval(0.0015, 0.0028)), with_interval(0.002, None)
        ('0.002 (0.0015 to 0.0028)', '0.002')
    """
    if interval is None:
        return f"{value:{form}}"
    return f"{value:{form}} ({span(interval, form)})"


def measured_text(validation: Validation, plan: Plan) -> str:
    """Say how well the predictions did, and if the thresholds held.

    Args:
        validation: of the plan.
        plan: that was measured.
    """
    through = way(validation.through, plan.targets)
    texts = [f"On {validation.samples} held-out samples through {through}, {_loss_text(validation, plan)}"]
    if validation.log_correlation is not None and validation.ratio is not None:
        points = [point for point in validation.points if point.interval is not None]
        agreement = _agreement(validation.log_correlation, validation.ratio, points)
        others = f"random plans{_otherwise(validation, plan)}"
        texts.append(f"Over {len(validation.points)} {others} {agreement}")
    if validation.kl is not None and validation.plan.kl is not None:
        texts.append(_kl_text(validation.kl, validation.plan.kl, validation, plan))
    return " ".join(texts)


def _agreement(log_correlation: float, ratio: float, points: Sequence[Point] | Sequence[KLPoint]) -> str:
    """Say how well predictions did; `points` are those with an interval."""
    text = (
        f"the correlation of the logarithms is {log_correlation:.3f}, mean predicted / mean measured "
        f"{ratio:.2f}"
    )
    if not points:
        return f"{text}."
    return f"{text}, and {sum(point.covered for point in points)} of them lie in their interval."


def _loss_text(validation: Validation, plan: Plan) -> str:
    nrmse, level = with_interval(validation.nrmse, validation.nrmse_interval), ""
    if validation.nrmse_interval:
        level = f"; in brackets, a {100 * validation.verify_confidence:g} % interval"
    if without_cache(plan):
        return (
            f"the NRMSE of the plan's ops is {nrmse}{level}. Its KV cache in FP8 cannot be measured on a "
            f"CPU: {_with_cache(validation, plan)} is predicted, not measured."
        )
    if validation.tau is not None and has_tau(plan):
        judged = f"tau {validation.tau:.6g}: {validation.verdict}"
    elif plan.nrmse is not None:
        judged = f"{plan.nrmse:.4g} predicted; held to no tau"
    else:
        judged = "not predicted"
    return f"the plan's NRMSE is {nrmse} ({judged}{level})."


def _with_cache(validation: Validation, plan: Plan) -> str:
    if plan.nrmse is None or validation.tau is None:
        return "what it adds"
    return f"an NRMSE of {plan.nrmse:.4g} with the cache (tau {validation.tau:.6g})"


def _kl_text(kl: KLValidation, point: KLPoint, validation: Validation, plan: Plan) -> str:
    """Say what KL the plan has, how it compares with the threshold, and how well predictions did."""
    judged, unmeasured = "", without_cache(plan)
    if kl.threshold is not None:
        outcome = "not measured with the KV cache in FP8" if unmeasured else validation.kl_verdict
        judged = f"; kl {kl.threshold:.6g}: {outcome}"
    value = with_interval(point.measured, point.measured_interval, ".3g")
    text = f"The plan's measured KL is {value} nats per {point.per}{judged}; {changes_text(point)}."
    measured = [point, *(other.kl for other in validation.points if other.kl is not None)]
    if kl.threshold is not None and (words := threshold_in_words(kl.threshold, measured)):
        text += f" By {words}."
    if kl.floor is not None:
        text += _floor_text(kl.floor, validation, judged=bool(judged) and not unmeasured)
    if kl.log_correlation is not None and kl.ratio is not None:
        others = [other.kl for other in validation.points if other.kl is not None and other.kl.interval]
        agreement = _agreement(kl.log_correlation, kl.ratio, others)
        text += f" Over the random plans{_otherwise(validation, plan)}, of KL, {agreement}"
    return text


def _floor_text(floor: float, validation: Validation, *, judged: bool) -> str:
    """Say how far the base model is from itself, computed in another way."""
    start = " The base model's own KL between"
    if validation.through == "vllm" and validation.dtype != "float32":
        return (
            f"{start} {validation.dtype} and float32 is {floor:.2g}: base and plan both round so, which adds "
            f"about {2 * floor:.2g} to what FP8 does."
        )
    ways = "samples alone and in batches" if validation.through == "vllm" else "its two attention kernels"
    end = ": nothing is held closer to its threshold." if judged else "."
    return f"{start} {ways} is {floor:.2g}{end}"


def _otherwise(validation: Validation, plan: Plan) -> str:
    """Say what lowered the ops of random plans, if something else than those of the plan."""
    return (
        ""
        if validation.points_through is None
        else f" through {way(validation.points_through, plan.targets)}"
    )


def changes_text(point: KLPoint) -> str:
    """Say how often the most likely word changes, and by what factor the perplexity.

    Example:
        >>> changes_text(KLPoint(None, None, 0.0011, None, flips=0.025, p99=0.01, perplexity_ratio=1.002))
        '1 token in 40 changes its most likely word, perplexity × 1.0020'
        >>> changes_text(KLPoint(None, None, 0.0, None, flips=0.0, p99=0.0))
        'no token changes its most likely word'
    """
    if not point.flips:
        share = f"no {point.per} changes its"
    elif point.flips < 0.2:
        share = f"1 {point.per} in {1 / point.flips:.0f} changes its"
    else:
        share = f"{100 * point.flips:.0f} % of all {point.per}s change their"
    text = f"{share} most likely {'word' if point.per == 'token' else 'class'}"
    if point.perplexity_ratio is None:
        return text
    return f"{text}, perplexity × {point.perplexity_ratio:.4f}"


def round_text(measured: Measured, nrmse: float | None, kl: float | None, *, thresholds: Thresholds) -> str:
    """Say what was predicted and measured of a plan of a closed loop, and if it holds.

    Args:
        measured: by the plan.
        nrmse: predicted; None where the loss was not priced.
        kl: predicted KL, nats per token; None where it was not priced.
        thresholds: of the loop.

    Example:
        >>> round_text(Measured(0.02, None, 0.001), None, 0.002, thresholds=Thresholds(None, 0.003))
        'KL 0.002 predicted, 0.001 measured (kl 0.003): not decided'
    """
    parts = []
    if thresholds.tau is not None:
        values = _both(nrmse, measured.nrmse, measured.interval)
        parts.append(f"NRMSE {values} (tau {thresholds.tau:.6g})")
    if thresholds.kl is not None and measured.kl is not None:
        values = _both(kl, measured.kl, measured.kl_interval)
        parts.append(f"KL {values} (kl {thresholds.kl:.6g})")
    return f"{', '.join(parts)}: {thresholds.verdict(measured)}"


def _both(predicted: float | None, value: float, interval: Interval | None) -> str:
    before = "" if predicted is None else f"{predicted:.4g} predicted, "
    return f"{before}{with_interval(value, interval)} measured"
