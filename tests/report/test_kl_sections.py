"""KL divergence on the page: figures, words, charts and tables by equality, of numbers made by hand."""

import math
from dataclasses import replace

import pytest
from report_case import ACCURACY, CURVE, PREDICTION, VALIDATION, artefacts, plan

from inc_mp_plugin.core.demands import Serving
from inc_mp_plugin.core.plan import Interval
from inc_mp_plugin.core.results import KLPoint, KLValidation, Round, Verification
from inc_mp_plugin.report.blocks import Series
from inc_mp_plugin.report.document import report_info
from inc_mp_plugin.report.measured import changes_text, measured_text

ENDS = Interval(0.0009, 0.0014)
OF_PLAN = KLPoint(0.001, Interval(0.0008, 0.0012), 0.0011, ENDS, 0.025, 0.02, 1.002)
OF_OTHERS = (
    KLPoint(0.004, Interval(0.003, 0.005), 0.0041, None, 0.1, 0.05, 1.01),
    KLPoint(0.002, Interval(0.0019, 0.0021), 0.0025, None, 0.3, 0.05, None),
    KLPoint(0.0, None, 0.0, Interval(0.0, 0.0), 0.0, 0.0),
)
WITH_KL = replace(
    VALIDATION,
    plan=replace(VALIDATION.plan, kl=OF_PLAN),
    points=tuple(replace(p, kl=kl) for p, kl in zip(VALIDATION.points, OF_OTHERS, strict=True)),
    kl=KLValidation(0.998, 0.91, 0.0015, 1e-5),
)
HELD_TO_KL = plan(kl=0.0015, predicted_kl=0.001, kl_interval=Interval(0.0008, 0.0012), constraint="loss")


def section(key, **changes):
    info = report_info(artefacts(plan=HELD_TO_KL, **changes))
    return next(part for part in info.sections if part.key == key)


def test_words():
    text = measured_text(WITH_KL, HELD_TO_KL)
    assert text.endswith(
        "The plan's measured KL is 0.0011 (0.0009 to 0.0014) nats per token; kl 0.0015: held; 1 token in 40 "
        "changes its most likely word, perplexity × 1.0020. By 3 measured plans, a KL of 0.0015 nats "
        "per token changes the most likely word of 1 token in 9 here. The base model's own KL between its "
        "two attention kernels is 1e-05: nothing is held closer to its threshold. Over the random plans, of "
        "KL, the correlation of the logarithms is 0.998, mean predicted / mean measured 0.91, and 1 of them "
        "lie in their interval."
    )
    for floor, judged in ((2e-4, "kl 0.0015: not decided"), (None, "kl 0.0015: held")):
        changed = replace(WITH_KL, kl=replace(WITH_KL.kl, floor=floor))
        assert judged in measured_text(changed, HELD_TO_KL)
    exceeded = replace(WITH_KL, kl=replace(WITH_KL.kl, threshold=8e-4))
    assert "kl 0.0008: exceeded" in measured_text(exceeded, HELD_TO_KL)
    assert "through hooks" in measured_text(replace(WITH_KL, through="hooks"), HELD_TO_KL)


def test_a_cache_in_fp8_is_not_measured():
    cached = replace(HELD_TO_KL, serving=Serving(kv_cache="fp8"))
    text = measured_text(WITH_KL, cached)
    assert "kl 0.0015: not measured with the KV cache in FP8; 1 token in 40" in text
    assert "kernels is 1e-05. Over" in text
    assert " held" not in text.replace("held-out", "")


def test_a_share_in_words():
    assert changes_text(OF_OTHERS[1]) == "30 % of all tokens change their most likely word"
    assert changes_text(OF_OTHERS[2]) == "no token changes its most likely word"


def test_a_classifier_has_samples_and_classes():
    of_samples = replace(OF_PLAN, per="sample")
    validation = replace(WITH_KL, plan=replace(WITH_KL.plan, kl=of_samples))
    text = measured_text(validation, HELD_TO_KL)
    assert "nats per sample; kl" in text
    assert "1 sample in 40 changes its most likely class" in text
    *_, table = section("validation", validation=validation).blocks
    assert table.caption.startswith("KL divergence, nats per sample, on 8")


def test_figures():
    (tiles, *_) = section("plan", validation=WITH_KL).blocks
    shown = {tile.label: (tile.value, tile.note, tile.verdict) for tile in tiles.tiles}
    note = "interval 0.0009 to 0.0014, 1 token in 40 changes its most likely word, perplexity × 1.0020"
    assert shown["KL divergence, measured"] == ("0.0011", note, "")
    assert shown["Threshold kl"] == ("0.0015", "held, as measured", "good")
    (tiles, *_) = section("plan").blocks
    shown = {tile.label: tile.note for tile in tiles.tiles}
    assert "KL divergence, measured" not in shown
    assert shown["Threshold kl"] == "within it by the prediction, not measured"


def test_chart_and_table():
    _, of_loss, of_kl, _, table = section("validation", validation=WITH_KL).blocks
    assert (of_loss.name, of_kl.name, of_kl.x_label) == (
        "validation",
        "validation-kl",
        "KL, nats per token, predicted",
    )
    assert of_kl.series[1:] == (
        Series(
            "random plans",
            "point",
            (0.004, 0.002),
            (0.0041, 0.0025),
            x_low=(0.003, 0.0019),
            x_high=(0.005, 0.0021),
        ),
        Series("the plan", "plan", (0.001,), (0.0011,), x_low=(0.0008,), x_high=(0.0012,)),
    )
    assert table.rows[0] == (
        "the plan: 1",
        "1.000e-03",
        "8.00e-04 to 1.20e-03",
        "1.10e-03 (9.00e-04 to 1.40e-03)",
        "0.91",
        "2.00e-02",
        "2.50",
        "1.0020",
    )
    assert table.rows[2][1:5] == ("2.000e-03", "1.90e-03 to 2.10e-03", "2.50e-03 !", "0.80")
    assert table.rows[2][-1] == "–"


def test_a_loss_that_was_not_priced():
    """Then there is neither a chart nor a table of it, and no prediction in the words."""
    unpriced = replace(
        WITH_KL,
        tau=None,
        log_correlation=None,
        ratio=None,
        plan=replace(WITH_KL.plan, predicted=None, interval=None),
        points=tuple(replace(point, predicted=None, interval=None) for point in WITH_KL.points),
    )
    text, chart, of_kl = section("validation", validation=unpriced).blocks
    assert chart.name == "validation-kl"
    assert of_kl.caption.startswith("KL divergence")
    predictions = [float(row[1]) for row in of_kl.rows[1:]]
    assert predictions == sorted(predictions)
    bare = plan(**dict.fromkeys(("tau", "loss_budget", "loss_mse", "interval", "nrmse")), kl=0.0015)
    text = measured_text(unpriced, bare)
    assert text.startswith(
        "On 8 held-out samples through INC, the plan's NRMSE is 0.05 (0.041 to 0.07) (not predicted"
    )
    assert text.count("correlation") == 1


@pytest.mark.parametrize("tau", [None, 0.1])
def test_a_closed_loop_of_kl(tau):
    tested = (
        Round(0.0, None, 0.0, 0.0, 0, Interval(0.0, 0.0), 0.0, 0.0, Interval(0.0, 0.0)),
        Round(1.0, None, 0.05, 6e6, 2, Interval(0.04, 0.07), 0.001, 0.0012, Interval(0.001, 0.0014)),
        Round(2.0, None, 0.06, 9e6, 3, Interval(0.05, 0.08), 0.002, 0.0022, Interval(0.002, 0.0024)),
    )
    loop = Verification(tau, 8, tested, 1, 0.9, kl=0.0015, floor=1e-5)
    text, chart, table = section("loop", verification=loop).blocks
    assert f"is within {'kl' if tau is None else 'tau and kl'}. " in text
    if tau is None:
        assert chart.y_label == "KL divergence, nats per token"
        assert chart.series[0] == Series("kl", "limit", (50.0, 75.0), (0.0015, 0.0015))
        assert chart.series[1] == Series("predicted", "predicted", (50.0, 75.0), (0.001, 0.002))
        assert chart.series[3] == Series("chosen", "plan", (50.0,), (0.0012,))
    else:
        assert chart.series[0].y == (0.1, 0.1)
        assert chart.series[1].x == ()  # the loss was not priced
    assert table.rows[1][-4:] == ("0.001", "0.0012", "0.001 to 0.0014", "held")
    assert table.rows[2][-1] == "exceeded"
    assert len(table.columns) == len(table.rows[0]) == (8 if tau is None else 11)
    assert all(math.isfinite(value) for series in chart.series for value in (*series.x, *series.y))


def with_kl(experiment, *measured):
    """The same experiment; its trials have these measured KL divergences, predicted a tenth higher."""
    ends = Interval(0.0, 0.1)
    trials = tuple(
        replace(trial, kl=KLPoint(1.1 * kl, ends, kl, ends, 0.0, 0.0))
        for trial, kl in zip(experiment.trials, measured, strict=True)
    )
    return replace(experiment, trials=trials)


def test_curves_have_a_chart_and_a_table_for_each_yardstick():
    curve = with_kl(CURVE, 0.02, 0.04, 0.01, 0.0)
    _, _, chart, table = section("curve", experiments=(curve,)).blocks
    assert (chart.name, chart.y_label) == ("curve-memory-kl", "KL divergence, nats per token, measured")
    assert chart.series == (
        Series(
            "random, mean of draws", "random", (62.5,), (pytest.approx(0.03),), (0.02,), (0.04,), band=True
        ),
        Series("ip_mse", "ip_mse", (50.0,), (0.01,)),
    )
    assert table.rows == (("20", "–", "0.00e+00"), ("50", "3.00e-02 (2.0e-02 to 4.0e-02)", "1.00e-02"))


def test_predictions_of_both_yardsticks():
    prediction = with_kl(PREDICTION, *[0.01] * len(PREDICTION.trials))
    _, chart, _, _ = section("prediction", experiments=(prediction,)).blocks
    assert (chart.name, chart.x_label) == ("prediction-memory-kl", "KL divergence, predicted")
    assert chart.series[1].x == pytest.approx([0.011] * len(PREDICTION.trials))
    assert chart.series[1].y == (0.01,) * len(PREDICTION.trials)


def test_scores_beside_the_divergence_of_the_same_plans():
    *_, table, _ = section("accuracy", experiments=(with_kl(ACCURACY, 0.01, 0.03),)).blocks
    assert table.columns == ("plan", "gain, %", "KL", "piqa/acc", "wiki/perplexity")
    assert table.rows == (("ip_mse, 50 %", "50.0", "2.00e-02", "+0.000 ± 2.83", "+10.000 ± 0.00"),)
