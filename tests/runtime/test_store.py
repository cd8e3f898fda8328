"""Artefacts: whole or absent, damaged ones told, stale ones made again."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.core.frontier import Curve, Frontier
from inc_mp_plugin.core.gains import Gains, GroupGains
from inc_mp_plugin.core.graph import Graph, Op, Unsupported
from inc_mp_plugin.core.plan import Interval, Plan
from inc_mp_plugin.core.results import Point, Round, Validation, Verification
from inc_mp_plugin.core.sensitivity import Drift, Sensitivity
from inc_mp_plugin.core.timings import (
    TimedConfiguration,
    TimedGroup,
    TimedPlan,
    TimeValidation,
    Timing,
)
from inc_mp_plugin.runtime import store
from inc_mp_plugin.runtime.codec import from_json, to_json
from inc_mp_plugin.runtime.reuse import partial, run_stage
from inc_mp_plugin.stages import (
    frontier,
    gains,
    graph,
    plan,
    time_validation,
    timing,
    validation,
    verification,
)
from inc_mp_plugin.stages.sensitivity_arrays import from_arrays, to_arrays, to_content

GRAPH = Graph(
    (Op("a", "linear", 10, 4, 1, True), Op("b", "bgemm", 5, 0, 2)),
    (("a",), ("b",)),
    (Unsupported("c", "addmm", "why"),),
    {"a": "Linear", "b": "Matmul"},
)
GROUP = GroupGains(("a",), (("bf16",), ("fp8_e4m3",)), (0.0, 1 / 3), (0.0, 0.1))
GAINS = {"memory": Gains("memory", "byte", "exact", "bf16", (GROUP,))}
PLAN = Plan(
    "ip_mse",
    "memory",
    "byte",
    "exact",
    "bf16",
    "uniform",
    0.1,
    1.0,
    0.2,
    0.15,
    0.09,
    Interval(0.1, 0.2),
    0.95,
    3.0,
    4.0,
    True,
    "proved optimal",
    0.0,
    0.01,
    {"a": "bf16"},
)
POINT = Point(("a",), 1e-6, Interval(0.5e-6, 3e-6), 2e-6)
CURVE = Curve("ip_mse", 0, (0, 1), (0.0, 3.0), (0.0, 1e-6), (0.0, 0.5e-6), (0.0, 2e-6))
FRONTIERS = {"memory": Frontier("memory", "byte", "exact", 2.0, 4.0, (CURVE, CURVE), 1)}
ROUNDS = (Round(0.7, 0.09, 0.09, 2.0, 3, Interval(0.08, 0.1)), Round(1.0, 0.1, 0.12, 3.0, 4, None))
VERIFICATION = Verification(0.1, 8, ROUNDS, 0, 0.9)
SURE = replace(POINT, measured_interval=Interval(1e-6, 3e-6))
VALIDATION = Validation(8, 2.0, 0.1, 0.05, SURE, (POINT, SURE), 0.99, 1.1, Interval(0.04, 0.07), 0.9)
TIMED = TimedConfiguration({"a": "bf16"}, 0.2, 0.01, (15, 30), (1.0, 0.1), (0.9, 0.09), 0.3)
TIMING = Timing(
    "cpu", "a CPU", {"ttft": 1, "tpot": 64}, (1.0, 0.1), (TIMED, TimedConfiguration({"b": "bf16"}))
)
TIME_VALIDATION = TimeValidation(
    "cpu",
    "a CPU",
    7.4,
    (TimedPlan("memory", 0.1, ("a",), 0.2, 0.01, 0.21, 0.02),),
    (TimedGroup(("a", "b"), 0.3, 0.01, 0.4, 1000),),
)
KINDS = {
    "graph": (graph.GRAPH, GRAPH),
    "gains": (gains.GAINS, GAINS),
    "plan": (plan.PLAN, PLAN),
    "timing": (timing.TIMING, TIMING),
    "time_validation": (time_validation.TIME_VALIDATION, TIME_VALIDATION),
    "verification": (verification.VERIFICATION, VERIFICATION),
    "frontier": (frontier.FRONTIER, FRONTIERS),
    "validation": (validation.VALIDATION, VALIDATION),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_read(kind, tmp_path):
    artefact, value = KINDS[kind]
    path = tmp_path / "folder" / f"{kind}.json"
    assert artefact.make(path.parent, {"of": "nothing"}, lambda: value) == value
    assert artefact.read(path.parent) == value
    assert artefact.made_from(path.parent)["of"] == "nothing"
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # nothing aside is left


def test_sensitivity_arrays(tmp_path):
    before = Sensitivity(("a", "b"), np.array([1.0, 2.0]), np.eye(2), np.ones((2, 2)))
    path = tmp_path / "sensitivity.npz"
    sha256 = store.write_arrays(path, to_arrays(before))
    with np.load(path, allow_pickle=False) as arrays:  # as the contract says
        assert set(arrays) == {"loss", "input", "weight", "ops"}
    after = from_arrays(store.read_arrays(path, sha256))
    assert after.ops == before.ops
    assert after.total == before.total == {"a": 1.5, "b": 1.5}
    measured = replace(before, rounding={"fp8_e4m3": np.eye(2)}, measured_drift=Drift(70.0, 9.0))
    again = from_arrays(to_arrays(measured))
    assert again.rounding["fp8_e4m3"].tolist() == np.eye(2).tolist()
    assert again.measured_drift == Drift(70.0, 9.0)
    content = to_content(before, sha256)
    assert content["ops"]["a"] == {"input": 0.5, "weight": 1.0, "total": 1.5}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is damaged"),
        ('{"schema": "inc_mp_plugin/gains/1"}', "its schema is 'inc_mp_plugin/gains/1'"),
        ('{"schema": "inc_mp_plugin/plan/1"}', "is damaged"),
        ('{"schema": "inc_mp_plugin/plan/1", "tau": NaN}', "it holds NaN"),
        ("[]", "its schema is None"),
        (None, "is missing; run `inc-mp tune"),
    ],
)
def test_damaged_files_are_told(tmp_path, text, message):
    path = tmp_path / "plan.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=message):
        plan.PLAN.read(tmp_path)


def test_a_cut_array_file_is_told(tmp_path):
    path = tmp_path / "a.npz"
    sha256 = store.write_arrays(path, {"x": np.arange(1000)})
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match="not what was written"):
        store.read_arrays(path, sha256)
    with pytest.raises(InputError, match="damaged"):
        store.read_arrays(path)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="x.json cannot be written"):
        store.write_json(tmp_path / "file" / "x.json", {})


def test_numbers_that_are_not_finite_are_not_written(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.write_json(tmp_path / "x.json", {"a": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_stages_are_reused_and_made_again(tmp_path, caplog):
    caplog.set_level("INFO", "inc_mp_plugin")
    path, made = tmp_path / "x.json", []

    def make():
        made.append(1)
        return len(made), {"value": len(made)}

    def run(depends_on):
        return run_stage(path, "x", depends_on, decode=lambda content: content["value"], make=make)

    assert run({"samples": 64}) == 1
    assert run({"samples": 64}) == 1
    assert caplog.messages == ["x.json: still valid, reused"]
    assert run({"samples": 32}) == 2
    assert caplog.messages[1:] == ["making x.json again: samples was 64, is 32"]
    path.write_text(path.read_text()[:-30])
    assert run({"samples": 32}) == 3
    assert "damaged" in caplog.messages[2]
    assert json.loads(path.read_text())["depends_on"] == {"samples": 32, "arithmetic": {"x": 1}}


def test_partial_results_count_only_under_their_key(tmp_path):
    path = tmp_path / "partial.npz"
    store.Partial(path, "one").save({"rows": np.arange(3)})
    assert store.Partial(path, "one").load()["rows"].tolist() == [0, 1, 2]
    assert store.Partial(path, "two").load() == {}
    path.write_bytes(b"nonsense")
    assert store.Partial(path, "one").load() == {}
    store.Partial(path, "one").remove()
    assert store.Partial(path, "one").load() == {}


def test_files_without_measured_intervals_are_read():
    """As they were written before measurements had intervals: nothing is decided by them."""
    validation = to_json(VALIDATION)
    for key in ("nrmse_interval", "verify_confidence"):
        del validation[key]
    for point in (validation["plan"], *validation["points"]):
        point.pop("measured_interval", None)
    read = from_json(Validation, validation)
    assert (read.nrmse, read.nrmse_interval, read.verdict) == (0.05, None, "not decided")
    verification = asdict(VERIFICATION)
    del verification["verify_confidence"]
    for closed_loop_round in verification["rounds"]:
        del closed_loop_round["interval"]
    read = from_json(Verification, verification)
    assert [closed_loop_round.interval for closed_loop_round in read.rounds] == [None, None]
    assert read.correction == VERIFICATION.correction


def test_what_is_under_way_is_of_one_process_of_as_many(tmp_path, monkeypatch):
    """Another number of processes gives each another share of the samples."""
    places = {}
    for size in (1, 2, 3):
        for rank in range(size):
            monkeypatch.setattr("inc_mp_plugin.runtime.ranks.rank", lambda rank=rank: rank)
            monkeypatch.setattr("inc_mp_plugin.runtime.ranks.size", lambda size=size: size)
            places[size, rank] = partial(tmp_path, "alps", {"model": "m"})
    assert len({place.key for place in places.values()}) == len(places)
    assert [places[3, rank].path.name for rank in range(3)] == [
        "alps.partial.npz",
        "alps.partial.1.npz",
        "alps.partial.2.npz",
    ]


def test_what_is_under_way_goes_when_the_result_is_there(tmp_path):
    path, others = tmp_path / "alps.json", [tmp_path / "eagl.partial.npz", tmp_path / "alps.npz"]
    under_way = [tmp_path / "alps.partial.npz", tmp_path / "alps.partial.1.npz"]
    for file in (*under_way, *others):
        file.write_text("")

    def make():
        assert all(file.exists() for file in under_way)
        return 1, {"value": 1}

    run_stage(path, "alps", {}, decode=lambda content: content["value"], make=make)
    assert not any(file.exists() for file in under_way)
    assert all(file.exists() for file in others)
