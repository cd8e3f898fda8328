"""Work that can be watched: honest times left, lines for batch jobs, bars in a terminal, silent libraries."""

import logging
import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import helpers
import pytest
from hypothesis import given
from hypothesis import strategies as st

import inc_mp_plugin as mp
from inc_mp_plugin.runtime import progress
from inc_mp_plugin.runtime.pace import Pace, Work, duration
from inc_mp_plugin.runtime.progress import say, shown, steps, tell, tracked, warn

ROOT = Path(__file__).parents[2]
PASSES = Work("ALPS", 74, noun="pass", shorter="fewer samples take less")


def under_way(work, *ends_s):
    """The pace after steps that ended at these times, from 0."""
    pace = Pace(work, 0.0, 0.0)
    for end_s in ends_s:
        pace = pace.stepped(end_s)
    return pace


def test_words_by_hand():
    work = Work("Sensitivity", 64, done=4, noun="batch")
    assert work.start == "Sensitivity: 60 batches, 4 of 64 were made before"
    assert under_way(work).words(31) == "4 of 64 after 31 s"
    # 8 steps in 32 s: 52 steps of 4 s are left, 208 s; 28 s later a step is late by 24 s, and 51 follow.
    assert under_way(work, *range(4, 33, 4)).words(32) == "12 of 64, 3 min left"
    assert under_way(work, *range(4, 33, 4)).left_s(34) == 206
    assert under_way(work, *range(4, 33, 4)).left_s(60) == 204
    assert under_way(work, 4, 8).end(8.2) == "Sensitivity: 2 batches in 8 s"


def test_the_last_step_is_not_said_to_be_nearly_done():
    pace = under_way(Work("x", 2), 40.0)
    assert pace.words(50) == "1 of 2, 30 s left"
    assert pace.words(80) == pace.words(80.4) == "1 of 2 after 80 s"
    assert under_way(Work("x", 2), 40.0, 80.0).words(80) == "2 of 2 after 80 s"


def test_at_most():
    work = Work("Closed loop", 15, noun="plan", at_most=True, shorter="fewer samples take less")
    assert work.start == "Closed loop: at most 15 plans"
    assert under_way(work).words(5) == "plan 1 of at most 15 after 5 s"
    assert under_way(work, 43, 86).line(86) == "Closed loop: plan 3 of at most 15, at most 9 min left"
    assert under_way(work, 43).announcement == (
        "Closed loop: at most 15 plans, about 11 min in all; fewer samples take less"
    )
    assert under_way(work, 43, 86).end(88) == "Closed loop: 2 plans in 88 s"


def test_what_takes_more_than_ten_minutes_is_announced_once():
    said = "ALPS: 74 passes, about 3 h 22 min in all; fewer samples take less"
    assert under_way(PASSES, 164.0).announcement == said
    assert under_way(PASSES, 8.1).announcement == ""
    assert under_way(PASSES, 164.0, 328.0).announcement == under_way(PASSES).announcement == ""


@given(st.lists(st.floats(0.001, 1e5), min_size=1, max_size=20), st.integers(1, 30), st.floats(0, 1e5))
def test_the_time_left_is_what_the_mean_step_says(lengths_s, more, waited_s):
    """At a step's end all that are left take the mean; while one runs, never less than the others need."""
    ends = [sum(lengths_s[: n + 1]) for n in range(len(lengths_s))]
    pace = under_way(Work("x", len(lengths_s) + more), *ends)
    mean = ends[-1] / len(lengths_s)
    assert pace.left_s(ends[-1]) == pytest.approx(mean * more)
    later = pace.left_s(ends[-1] + waited_s)
    if later is None:
        assert more == 1
        assert waited_s >= mean * 0.999
    else:
        assert mean * (more - 1) * 0.999 <= later <= mean * more * 1.001


def test_times_as_a_person_says_them():
    assert [duration(s) for s in (0.0, 1.9, 89, 91, 3599, 5400, 12240)] == [
        *("0 s", "1.9 s", "89 s", "2 min", "60 min", "1 h 30 min", "3 h 24 min")
    ]


def test_a_library_is_silent(capfd, tmp_path):
    model = helpers.language_model("llama")
    batches = [{"input_ids": helpers.tokens(2, 16, seed)} for seed in range(2)]
    mp.tune(model, batches, tau=0.001, noise=None, strategy="alps", out=tmp_path)
    graph = mp.capture(model, batches[0])
    scales = mp.Scales("maxabs_pow2", "cpu")
    mp.measure_sensitivity(model, graph, batches, scales=scales, formats=("fp8_e4m3",))
    mp.apply(model, mp.solve(mp.memory_gains(graph, ("fp32", "fp8_e4m3")), _seen(tmp_path), tau=1), batches)
    warn("something that matters")
    captured = capfd.readouterr()
    ours = [line for line in (captured.out + captured.err).splitlines() if "neural_compressor" not in line]
    assert [line for line in ours if "[INFO]" not in line and "[WARNING]" not in line] == []


def _seen(folder):
    from inc_mp_plugin.runtime.store import read_arrays
    from inc_mp_plugin.stages.sensitivity_arrays import from_arrays

    return from_arrays(read_arrays(folder / "sensitivity.npz"))


def test_lines_are_logged(caplog):
    caplog.set_level("INFO", "inc_mp_plugin")
    with tracked([1, 2], "Sensitivity", noun="batch") as items:
        assert list(items) == [1, 2]
    assert caplog.messages[0] == "Sensitivity: 2 batches"
    assert caplog.messages[1].startswith("Sensitivity: 2 batches in 0.")
    assert len(caplog.messages) == 2
    with tracked([], "Nothing") as items:
        assert list(items) == []
    assert len(caplog.messages) == 2


def test_a_line_comes_though_a_step_takes_longer(caplog, monkeypatch):
    caplog.set_level("INFO", "inc_mp_plugin")
    monkeypatch.setattr(progress, "_PERIOD_S", 0.02)
    with steps(Work("Measured plans", 3, noun="plan")) as advance:
        while "Measured plans: 0 of 3 after" not in caplog.text:
            time.sleep(0.01)
        advance()
        while "Measured plans: 1 of 3, " not in caplog.text:
            time.sleep(0.01)
    count = len(caplog.messages)
    assert caplog.messages[-1].startswith("Measured plans: 1 plan in")
    time.sleep(0.1)
    assert len(caplog.messages) == count


def test_after_an_error_nothing_more_is_said(caplog, monkeypatch):
    caplog.set_level("INFO", "inc_mp_plugin")
    monkeypatch.setattr(progress, "_PERIOD_S", 0.01)
    with pytest.raises(ZeroDivisionError), tracked([1, 2, 3], "Sensitivity") as items:
        for _ in items:
            raise ZeroDivisionError
    said = list(caplog.messages)
    time.sleep(0.1)
    assert caplog.messages == said
    assert "steps in" not in caplog.text


def test_the_command_line_shows_and_leaves_as_it_came(capsys):
    before = (progress.LOGGER.level, progress.LOGGER.propagate, list(progress.LOGGER.handlers))
    with shown(), shown():
        say("a line [with brackets]")
        logging.getLogger("inc_mp_plugin").info("of a %s", "script")
    tell("of the command itself")
    say("of a library again")
    expected = "a line [with brackets]\nof a script\nof the command itself\n"
    assert capsys.readouterr().err == expected
    assert (progress.LOGGER.level, progress.LOGGER.propagate, list(progress.LOGGER.handlers)) == before


def test_other_processes_say_nothing(capsys, monkeypatch):
    monkeypatch.setattr(progress.ranks, "rank", lambda: 1)
    with shown():
        say("x")
        warn("x")
        with tracked([1], "x") as items:
            list(items)
    tell("x")
    assert capsys.readouterr().err == ""


STEPS = """
import time
from inc_mp_plugin.runtime.progress import shown, say, steps
from inc_mp_plugin.runtime.pace import Work
with shown():
    with steps(Work("Closed loop", 5, noun="plan", at_most=True)) as advance:
        for number in range(3):
            time.sleep(0.3)
            say(f"plan {number} is measured")
            advance()
    say("done")
"""


def test_a_bar_in_a_terminal():
    """In a terminal: the time left is there after one step, lines stand above, the bar is gone at last."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen([sys.executable, "-c", STEPS], stderr=theirs, env=environment)
    os.close(theirs)
    seen = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
        seen += part
    assert process.wait() == 0
    text = seen.decode()
    assert "Closed loop" in text
    assert "plan 2 of at most 5, at most" in text
    assert "Closed loop: at most" not in text  # no line beside the bar
    last = text.rsplit("\x1b[2K", 1)[1]
    assert "Closed loop" not in last
    assert "done" in last


@pytest.mark.parametrize("level", [None, "INFO"])
def test_how_a_script_sees_the_lines(level):
    """As the README says."""
    code = "import logging; from inc_mp_plugin.runtime.progress import say\n"
    if level:
        code += "logging.basicConfig(format='%(name)s: %(message)s')\n"
        code += f"logging.getLogger('inc_mp_plugin').setLevel(logging.{level})\n"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", f"{code}say('seen')"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert (done.stdout, done.stderr) == ("", "inc_mp_plugin: seen\n" if level else "")
