"""A folder becomes a report: artefacts are shown where they are there and up to date."""

import subprocess
import sys
from dataclasses import asdict, replace

import pytest
from report_case import (
    CURVE,
    FRONTIER,
    OPS,
    TIMES,
    VALIDATION,
    VERIFICATION,
    gains,
    graph,
    losses,
    sensitivity,
)

from inc_mp_plugin.core.demands import Serving
from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.core.results import Point
from inc_mp_plugin.pipeline.recipe import parse_recipe
from inc_mp_plugin.pipeline.report import read_artefacts, write_report
from inc_mp_plugin.runtime import store
from inc_mp_plugin.runtime.codec import to_json
from inc_mp_plugin.stages.frontier import FRONTIER as FRONTIERS
from inc_mp_plugin.stages.gains import encode
from inc_mp_plugin.stages.job import Job
from inc_mp_plugin.stages.plan import plan_depends_on, plan_stage
from inc_mp_plugin.stages.sensitivity_arrays import to_arrays, to_content

RECIPE = {
    "model": {"name_or_path": "org/tiny"},
    "calibration": {"data": "calibration.jsonl"},
    "tau": 0.1,
}
JOB = Job(base="bf16", tau=0.1)


def write(folder, stem, kind, content, depends_on):
    store.write_artefact(folder / f"{stem}.json", kind, {**content, "depends_on": depends_on})


@pytest.fixture
def folder(tmp_path):
    recipe = parse_recipe(dict(RECIPE), [], "recipe")
    store.write_artefact(tmp_path / "recipe.json", "recipe", recipe.model_dump(mode="json"))
    write(tmp_path, "graph", "graph", to_json(graph()), {})
    seen = sensitivity()
    sha256 = store.write_arrays(tmp_path / "sensitivity.npz", to_arrays(seen))
    content = to_content(seen, sha256)
    write(tmp_path, "sensitivity", "sensitivity", content, {"versions": {"torch": "2.13"}})
    write(tmp_path, "gains", "gains", encode({"memory": gains()}), {})
    plan_stage(JOB, losses(), {"memory": gains()}, tmp_path)
    return tmp_path


def add_everything(folder):
    made = plan_depends_on(JOB, losses(), {"memory": gains()})
    files = {
        "sensitivity": store.read_json(folder / "sensitivity.json", "sensitivity")["arrays_sha256"],
        "gains": store.fingerprint(store.read_json(folder / "gains.json", "gains")),
        "noise": "uniform",
        "targets": [],
        "serving": asdict(Serving()),
        "yardstick": "loss",
    }
    write(folder, "frontier", "frontier", FRONTIERS.encode({"memory": FRONTIER}), files)
    lowered = read_artefacts(folder).plan.quantized
    validation = replace(VALIDATION, plan=Point(lowered, 3e-6, VALIDATION.plan.interval, 1.5e-6))
    write(folder, "validation", "validation", asdict(validation), {})
    write(folder, "verification", "verification", asdict(VERIFICATION), made)
    write(folder, "time_validation", "time_validation", asdict(TIMES), {"gains": made["gains"]})
    write(folder, "experiments/curve-memory", "experiment", asdict(CURVE), made)


def test_what_is_not_there_is_none(folder):
    artefacts = read_artefacts(folder)
    assert (artefacts.frontiers, artefacts.validation, artefacts.time, artefacts.verification) == (None,) * 4
    assert (artefacts.experiments, artefacts.outdated) == ((), {})
    assert (artefacts.runnable, artefacts.model) == (OPS, "tiny")
    assert artefacts.stability.draws == 20
    assert artefacts.depends_on["sensitivity"] == {"versions": {"torch": "2.13"}, "made_by": None}


def test_everything_is_found(folder):
    add_everything(folder)
    artefacts = read_artefacts(folder)
    assert artefacts.frontiers == {"memory": FRONTIER}
    assert artefacts.time == TIMES
    assert artefacts.verification == VERIFICATION
    assert artefacts.experiments == (CURVE,)
    assert artefacts.validation is not None
    assert artefacts.outdated == {}


def test_what_is_of_another_plan_or_state_is_not_shown(folder):
    add_everything(folder)
    plan_stage(replace(JOB, tau=0.05), losses(), {"memory": gains()}, folder)
    artefacts = read_artefacts(folder)
    assert artefacts.validation is None
    assert artefacts.verification is None
    assert artefacts.experiments == (CURVE,)  # of the same gains and sensitivities
    assert artefacts.outdated == {
        "validation": "validation.json is of another plan",
        "verification": "verification.json is out of date (tau changed since)",
    }


def test_everything_else_is_of_the_same_gains_as_the_plan(folder):
    add_everything(folder)
    cheaper = replace(gains().groups[-1], gain=(0.0, 1e6))
    other = {"memory": replace(gains(), groups=(*gains().groups[:-1], cheaper))}
    write(folder, "gains", "gains", encode(other), {})
    with pytest.raises(
        InputError, match=r"plan.json is out of date \(gains changed since\); run `inc-mp sol"
    ):
        read_artefacts(folder)
    plan_stage(JOB, losses(), other, folder)
    dependent = {"frontier", "time_validation", "verification", "experiments/curve-memory"}
    assert read_artefacts(folder).outdated.keys() == dependent


def test_a_plan_for_a_gain_is_planned_again_for_that_gain(folder):
    job = replace(JOB, tau=0.9, gain_fraction=0.5)
    plan = plan_stage(job, losses(), {"memory": gains()}, folder)
    stability = read_artefacts(folder).stability
    assert stability.gain == plan.gain == stability.gain_low


@pytest.mark.slow
def test_the_report_is_written_and_the_same_twice_without_torch(folder):
    add_everything(folder)
    path = write_report(folder)
    assert path == folder / "report.html"
    first = {file: file.read_bytes() for file in [path, *sorted((folder / "figures").iterdir())]}
    names = {file.name for file in first}
    figures = ("plan", "budget-kinds", "budget-ops", "frontier-memory", "validation", "closed-loop")
    figures += ("time-plans", "time-groups", "time-macs", "curve-memory")
    assert names == {"report.html", *(f"{name}.{end}" for name in figures for end in ("png", "svg"))}
    code = (
        "import sys; from pathlib import Path; from inc_mp_plugin.pipeline.report import write_report; "
        "write_report(Path(sys.argv[1])); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {file: file.read_bytes() for file in first} == first


def test_a_folder_without_a_plan(tmp_path):
    with pytest.raises(InputError, match="missing; run `inc-mp tune"):
        write_report(tmp_path)
