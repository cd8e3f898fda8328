"""Sections on the loss: gain against it, and the closed loop."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean

from inc_mp_plugin.core.frontier import Curve, Frontier
from inc_mp_plugin.core.numbers import rounded_up
from inc_mp_plugin.core.plan import Interval, Plan
from inc_mp_plugin.core.results import Round, Verification
from inc_mp_plugin.report.artefacts import RunArtefacts
from inc_mp_plugin.report.blocks import Block, Blocks, Chart, Series, Table, Values
from inc_mp_plugin.report.text import amount, percent, span

_GAIN = "gain, % of the largest"
_YARDSTICKS = {"loss": "NRMSE of the loss", "kl": "KL divergence, nats per token"}


def frontier_blocks(run: RunArtefacts) -> Blocks:
    """Make the charts and tables of gain against loss, per objective."""
    if not run.frontiers:
        return (run.missing("frontier", "The frontier", f"inc-mp frontier {run.folder}"),)
    blocks: list[Block] = []
    for frontier in run.frontiers.values():
        gains = run.gains.get(frontier.objective)
        total = gains.total(run.plan.formats) if gains else None
        chart = _frontier_chart(frontier, run.plan, total[0] if total else None)
        blocks += [chart, frontier_table(frontier)]
    return tuple(blocks)


def _frontier_chart(frontier: Frontier, plan: Plan, gain: float | None) -> Chart:
    exact, largest, nrmse = frontier.curves[0], frontier.largest_gain, frontier.threshold
    knee = percent(exact.gain[frontier.knee], largest), nrmse(exact.loss_mse[frontier.knee])
    lower, upper = tuple(map(nrmse, exact.low)), tuple(map(nrmse, exact.high))
    label = f"{exact.strategy}, with its interval"
    series = [
        *_draws(frontier, "random"),
        *_draws(frontier, "prefix"),
        *_draws(frontier, "ends"),
        *_draws(frontier, "practice"),
        Series(label, exact.strategy, *_curve(frontier, exact), lower, upper, band=True),
        Series("knee", "knee", knee[:1], knee[1:]),
    ]
    of_kl = frontier.yardstick == "kl"
    predicted, yardstick = (plan.predicted_kl, "KL divergence") if of_kl else (plan.nrmse, "loss")
    if gain is not None and predicted is not None:
        series.append(Series("the plan", "plan", (percent(gain, largest),), (predicted,)))
    return Chart(
        f"frontier-{frontier.objective}",
        f"What does each share of the {frontier.objective} gain ({frontier.source}, at most "
        f"{amount(largest, frontier.unit)}) cost in {yardstick}? Below: better.",
        _GAIN,
        _YARDSTICKS[frontier.yardstick] + ", predicted",
        tuple(series),
    )


def _draws(frontier: Frontier, strategy: str) -> Iterator[Series]:
    for number, curve in enumerate(curve for curve in frontier.curves[1:] if curve.strategy == strategy):
        yield Series("" if number else strategy, f"{strategy}_curve", *_curve(frontier, curve))


def _curve(frontier: Frontier, curve: Curve) -> tuple[Values, Values]:
    gains = tuple(percent(gain, frontier.largest_gain) for gain in curve.gain)
    return gains, tuple(map(frontier.threshold, curve.loss_mse))


def frontier_table(frontier: Frontier, most: int | None = None) -> Table:
    """Make the table of the exact curve, and of the losses of the baselines that gain at least as much.

    The losses are normalized RMSEs; that of `random` is the root of the draws' mean loss MSE.

    Args:
        frontier: all its curves.
        most: number of points that are enough, in even steps; both ends and the knee stay. None for all.
    """
    exact, nrmse = frontier.curves[0], frontier.threshold
    key = "kl" if frontier.yardstick == "kl" else "tau"
    drawn = {curve.strategy for curve in frontier.curves}
    beside = ("prefix", *(("ends",) if "ends" in drawn else ()), "random")
    rows, kept = [], _kept(len(exact.gain), most, frontier.knee)
    for k in kept:
        gain, loss_mse = exact.gain[k], exact.loss_mse[k]
        share = f"{percent(gain, frontier.largest_gain):.1f}{' knee' if k == frontier.knee else ''}"
        ends = span((nrmse(exact.low[k]), nrmse(exact.high[k])))
        others = [_mean_nrmse(frontier, strategy, gain) for strategy in beside]
        row = (amount(gain, frontier.unit), share, str(exact.ops[k]), f"{nrmse(loss_mse):.3g}", ends)
        needed = max(exact.needed[k], loss_mse) if exact.needed else loss_mse
        rows.append((*row, *others, rounded_up(nrmse(needed))))
    return Table(
        f"{frontier.objective} ({frontier.source}), of {amount(frontier.largest_gain, frontier.unit)}: "
        f"{_YARDSTICKS[frontier.yardstick]}. The knee stands out; `{key}=` gives a plan to `inc-mp solve` "
        "(with `confidence=null`, where the recipe has one)."
        f"{_practice_text(frontier)}",
        ("gain", "%", "ops", "ip_mse", "its interval", *beside[:-1], "random, mean", f"{key}="),
        tuple(rows),
        marked=(kept.index(frontier.knee),),
    )


def _kept(points: int, most: int | None, knee: int) -> list[int]:
    """Choose points in even steps, and the knee.

    Args:
        points: number of all.
        most: number that is enough; None for all.
        knee: stays.
    """
    if most is None or points <= most:
        return list(range(points))
    return sorted({knee, *(round(step * (points - 1) / (most - 1)) for step in range(most))})


def _practice_text(frontier: Frontier) -> str:
    """Say what all linear ops but the head gain and cost; nothing where that was not drawn."""
    curve = next((curve for curve in frontier.curves if curve.strategy == "practice" and curve.gain), None)
    if curve is None:
        return ""
    share, cost = percent(curve.gain[0], frontier.largest_gain), frontier.threshold(curve.loss_mse[0])
    return f" practice, all linear ops but the head, gains {share:.1f} % at {cost:.3g}."


def _mean_nrmse(frontier: Frontier, strategy: str, gain: float) -> str:
    """Format the NRMSE of the mean loss MSE of a strategy's draws, each for at least this gain.

    Where a draw never gains as much, or there is no draw, the result is a dash.
    """
    losses = [curve.least_loss(gain) for curve in frontier.curves if curve.strategy == strategy]
    reached = [loss for loss in losses if loss is not None]
    if not reached or len(reached) < len(losses):
        return "–"
    return f"{frontier.threshold(fmean(reached)):.3g}"


def closed_loop_blocks(run: RunArtefacts) -> Blocks:
    """Make text, chart and table of the plans measured from tight to loose, up to the first that fails."""
    loop, plan = run.verification, run.plan
    if loop is None:
        command = run.how_to("inc-mp tune RECIPE.yaml verify=true --out", "validation=heldout, verify=True")
        return (run.missing("verification", "Measured corrections", command),)
    bounds = " and ".join(_bounds(loop))
    text = (
        f"A plan holds if the upper end of its {100 * loop.verify_confidence:g} % interval is within "
        f"{bounds}. Plans are tested from tight to loose, first in wide steps and then in narrow ones, each "
        f"up to the first that does not hold. The {loop.samples} held-out samples of this section serve no "
        "other purpose: what is reported of the chosen plan is measured on others."
    )
    return text, _loop_chart(loop, plan), _loop_table(loop, plan)


def _bounds(loop: Verification) -> list[str]:
    """Name what a plan of the loop was held to."""
    return [name for name, given in (("tau", loop.tau), ("kl", loop.kl)) if given is not None]


def _loop_chart(loop: Verification, plan: Plan) -> Chart:
    """Draw the measured KL where kl is the only threshold, else the NRMSE."""
    # The plan that lowers nothing is where the search starts; here it would only stretch the axes.
    lowering = [tested for tested in loop.rounds if tested.ops]
    by_kl = loop.tau is None
    rounds = sorted(lowering, key=lambda tested: (tested.gain, _values(tested, by_kl)[1]))
    x = tuple(percent(tested.gain, plan.largest_gain) for tested in rounds)
    values = [_values(tested, by_kl) for tested in rounds]
    ends = [interval or (measured, measured) for _, measured, interval in values]
    lower, upper = tuple(bottom for bottom, _ in ends), tuple(top for _, top in ends)
    priced = [
        (at, predicted) for at, (predicted, _, _) in zip(x, values, strict=True) if predicted is not None
    ]
    choice = loop.rounds[loop.chosen]
    name, limit = ("kl", loop.kl) if by_kl else ("tau", loop.tau)
    of = "KL divergence" if by_kl else "loss"
    return Chart(
        "closed-loop",
        f"How far can the allowance be stretched until the interval of the {of} measured on {loop.samples} "
        f"held-out samples reaches {name}?",
        _GAIN,
        "KL divergence, nats per token" if by_kl else "NRMSE of the loss",
        (
            Series(name, "limit", (min(x, default=0.0), max(x, default=100.0)), (limit or 0.0,) * 2),
            Series("predicted", "predicted", tuple(at for at, _ in priced), tuple(y for _, y in priced)),
            Series(
                "measured, with its interval", "measured", x, tuple(y for _, y, _ in values), lower, upper
            ),
            Series(
                "chosen", "plan", (percent(choice.gain, plan.largest_gain),), (_values(choice, by_kl)[1],)
            ),
        ),
    )


def _values(tested: Round, by_kl: bool) -> tuple[float | None, float, Interval | None]:
    """Return what was predicted and measured of a plan, and the interval of the latter."""
    if by_kl:
        return tested.predicted_kl, tested.measured_kl or 0.0, tested.kl_interval
    return tested.predicted_nrmse, tested.measured_nrmse, tested.interval


def _loop_table(loop: Verification, plan: Plan) -> Table:
    limits = ", ".join(f"{name} {getattr(loop, name):.6g}" for name in _bounds(loop))
    columns = [name for by_kl in _kinds(loop) for name in _headings(by_kl)]
    return Table(
        f"Plans in the order they were measured, {limits}; the chosen one stands out. "
        "The correction multiplies the allowance.",
        ("correction", "ops", "gain", "%", *columns, "verdict"),
        tuple(
            (
                f"{tested.correction:.4g}",
                str(tested.ops),
                amount(tested.gain, plan.unit),
                f"{percent(tested.gain, plan.largest_gain):.1f}",
                *(cell for by_kl in _kinds(loop) for cell in _cells(*_values(tested, by_kl))),
                loop.thresholds.verdict(tested.measured),
            )
            for tested in loop.rounds
        ),
        left=0,
        marked=(loop.chosen,),
    )


def _kinds(loop: Verification) -> list[bool]:
    """List what is shown of each plan: the loss, KL (True), or both."""
    return [name == "kl" for name in _bounds(loop)]


def _headings(by_kl: bool) -> tuple[str, str, str]:
    of = "KL " if by_kl else ""
    return f"{of}predicted", f"{of}measured", f"{of}interval"


def _cells(predicted: float | None, measured: float, interval: Interval | None) -> tuple[str, str, str]:
    before = "–" if predicted is None else f"{predicted:.3g}"
    return before, f"{measured:.3g}", span(interval) if interval else "–"
