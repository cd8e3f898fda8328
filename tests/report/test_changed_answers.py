"""The report on changed answers: by numbers worked by hand."""

from dataclasses import replace

import pytest
from report_case import ACCURACY, artefacts

from inc_mp_plugin.core.experiment import AnswerChange
from inc_mp_plugin.core.plan import Interval
from inc_mp_plugin.core.results import KLPoint
from inc_mp_plugin.report.blocks import Series
from inc_mp_plugin.report.document import report_info


def section(key, **changes):
    return next(part for part in report_info(artefacts(**changes)).sections if part.key == key)


def answered(trial, kl, measured, change):
    point = KLPoint(None, None, kl, None, 0.0, 0.0)
    return replace(trial, kl=point, measured=measured, answers={"piqa": change})


CHANGES = (
    AnswerChange(50, 0.02, 0.0, Interval(-0.03, 0.03), -0.1, Interval(-0.15, -0.05), 0.1),
    AnswerChange(50, 0.1, -0.04, Interval(-0.1, 0.02), -0.2, Interval(-0.3, -0.1), 0.2),
    AnswerChange(50, 0.2, -0.14, Interval(-0.2, -0.08), -0.6, Interval(-0.8, -0.4), 0.6),
)


def test_accuracy_margin_and_what_goes_with_it():
    trials = [*ACCURACY.trials, replace(ACCURACY.trials[0], strategy="random", gain=12e6)]
    given = zip(trials, (0.01, 0.02, 0.06), (0.01, 0.04, 0.04), CHANGES, strict=True)
    experiment = replace(ACCURACY, trials=tuple(answered(*each) for each in given))
    text, chart, table = section("accuracy", experiments=(experiment,)).blocks[-3:]
    # KL is a line of the change; the NRMSE, (0.1, 0.2, 0.2), is not: its correlation is sqrt(3 / 7).
    assert text == (
        "piqa, 50 documents: of 3 runs of plans, 1 differ from the base format in accuracy by more than the "
        "interval of paired documents, 3 in the margin. Correlation with the root mean square change of the "
        "margin over these runs: KL +1.00, NRMSE +0.65."
    )
    assert chart.name == "margin-memory-piqa"
    _, ours, random = chart.series
    assert ours == Series("ip_mse", "ip_mse", (50.0,), near(-0.15), y_low=near(-0.225), y_high=near(-0.075))
    assert random.x == (100.0,)
    assert table.rows[1] == (
        *("ip_mse, 50 %", "1", "2.00e-02", "10.0"),
        *("-4.0 (-10.0 to +2.0)", "-0.200 (-0.300 to -0.100)", "0.200"),
    )


def test_tasks_without_answers_have_none():
    assert len(section("accuracy", experiments=(ACCURACY,)).blocks) == 5


def near(value):
    return (pytest.approx(value),)
