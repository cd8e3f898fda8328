"""Parts of the experiments: the time said first, an interrupt that loses nothing, and less with --quick."""

import re

import pytest
from helpers import call, read, told

from inc_mp_plugin.experiments.settings import Settings
from inc_mp_plugin.stages import comparison


@pytest.fixture
def folder(run_folder):
    return run_folder


def plans_of(experiment):
    return {tuple(trial["quantized"]) for trial in experiment["trials"]}


def test_the_time_is_said_before_anything_is_measured(folder):
    result = call("experiment", folder, "curve", "--draws", 1, "--points", 1)
    assert result.exit_code == 0, result.output
    count = len(plans_of(read(folder, "experiments/curve-memory.json")))
    words = told(result)
    said = re.search(rf"curve: {count} plans, about \S+ m?s ", words)
    assert said, words
    assert said.start() < words.index("Plans of curve")
    (folder / "experiments" / "curve-memory.json").unlink()
    again = call("experiment", folder, "curve", "--draws", 1, "--points", 1)
    assert "curve: everything was measured before" in told(again)


def test_a_killed_part_goes_on_where_it_stopped(folder, monkeypatch):
    command = ["experiment", folder, "prediction", "--draws", 6, "--points", 1]
    ran, real = [], comparison.divergence_rows

    def counted(*arguments):
        ran.append(arguments)
        if len(ran) == stop_at:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(comparison, "divergence_rows", counted)
    stop_at = 5  # in the second of two batches
    assert call(*command).exit_code != 0
    assert not list(folder.glob("experiments/*.json"))
    ran.clear()
    stop_at = 0
    whole = call(*command)
    assert whole.exit_code == 0, whole.output
    count = len(plans_of(read(folder, "experiments/prediction-memory.json")))
    before = len(read(folder, "validation.json")["points"])  # the same random plans
    assert "prediction: 3 plans, about " in told(whole)
    assert len(ran) == count - before == 3  # of the second batch


def test_quick_is_less_of_all_and_says_so(folder):
    result = call("experiment", folder, "methods", "--quick", "--points", 1, "--draws", 2)
    assert result.exit_code == 0, result.output
    words = told(result)
    assert (
        "methods, quick: --draws 2, --points 1, ALPS on 2 calibration samples; intervals are wider" in words
    )
    assert re.search(r"methods: \d+ plans and ALPS with each of \d+ ops alone on 2 samples, about ", words)
    experiment = read(folder, "experiments/methods-memory.json")
    by_level = {}
    for trial in experiment["trials"]:
        by_level.setdefault(trial["level"], []).append(trial)
    names = ["ip_mse", "eagl", "alps", "prefix", "ends", "random", "random"]
    assert [t["strategy"] for t in by_level[0.65]] == names
    (own,) = {t["level"] for t in experiment["trials"] if t["strategy"] == "practice"}
    assert [t["strategy"] for t in by_level[own]] == [*names, "practice"]
    assert all(
        t["gain"] >= t["level"] * experiment["largest_gain"] * (1 - 1e-12) for t in experiment["trials"]
    )
    alps = read(folder, "experiments/calibrated-on-2-samples/alps.json")
    assert alps["depends_on"]["calibration.samples"] == 2
    # The values of another number of samples are others, and not in the way of a strategy.
    assert not (folder / "alps.json").exists()
    (folder / "experiments" / "methods-memory.json").unlink()
    again = call("experiment", folder, "methods", "--quick", "--points", 1, "--draws", 2)
    assert "methods: everything was measured before" in told(again)
    assert read(folder, "experiments/methods-memory.json")["trials"] == experiment["trials"]


def test_numbers_that_are_given_count_before_those_of_quick():
    settings = Settings(draws=7, samples=32, quick=True).sized("prediction", 32)
    assert (settings.draws, settings.points, settings.samples) == (7, 3, 32)
    whole = Settings().sized("prediction", 32)
    assert (whole.draws, whole.points, whole.samples, whole.tasks.limit) == (60, None, None, None)
    assert Settings(quick=True).sized("curve", 4).samples is None  # fewer than quick would take
