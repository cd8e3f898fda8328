"""Single commands in a folder that tune wrote: what they advise works, and no file of a former plan stays."""

import re
import shlex

import helpers
import numpy as np
import pytest
from helpers import call, read, told

import inc_mp_plugin as mp
from inc_mp_plugin.core.errors import SelectionError
from inc_mp_plugin.pipeline.emit import emit_files, runs_alike
from inc_mp_plugin.pipeline.folder import Run
from inc_mp_plugin.pipeline.recipe import parse_recipe
from inc_mp_plugin.pipeline.report import read_artefacts
from inc_mp_plugin.pipeline.resolve import job_of
from inc_mp_plugin.pipeline.solve import draw_frontier
from inc_mp_plugin.stages.sensitivity_arrays import from_arrays, to_arrays
from inc_mp_plugin.targets import get_target
from inc_mp_plugin.targets.layout import Captured


def advised(result):
    """Run the command at the end of a message."""
    program, *arguments = shlex.split(re.search(r"inc-mp solve .*", told(result))[0])
    assert program == "inc-mp"
    return call(*arguments)


@pytest.fixture
def folder(run_folder):
    return run_folder


def configs(folder):
    return {path.name for path in (folder / "configs").iterdir()}


@pytest.mark.parametrize(
    ("solved", "target", "serving", "kept"),
    [
        (["tau=0.00007"], "vllm-gaudi", [], {"tau": 0.00007}),
        (["tau=0.00005", "noise=log_uniform"], "vllm-gaudi", [], {"tau": 0.00005, "noise": "log_uniform"}),
        (["tau=0.00009"], "optimum-habana", ["attention=flash"], {"tau": 0.00009}),
        (["targets=[cpu-qdq]", "tau=1"], "vllm-gaudi", ["kv_cache=fp8"], {"tau": 1}),
        (["strategy=random"], "vllm-gaudi", ["attention=flash"], {"strategy": "random"}),
    ],
    ids=["another tau", "another noise, too", "another attention", "another target and cache", "a baseline"],
)
def test_what_a_refused_emit_advises_makes_it_work(folder, solved, target, serving, kept):
    assert call("solve", folder, *solved).exit_code == 0
    before = read(folder, "plan.json")
    result = call("emit", folder, "--target", target, *serving)
    assert result.exit_code == 2, result.output
    assert f"no {target} file was made" in told(result)
    assert advised(result).exit_code == 0
    after = read(folder, "plan.json")
    assert {key: after[key] for key in kept} == {key: before[key] for key in kept} == kept
    assert set(after["targets"]) == {*before["targets"], target}
    result = call("emit", folder, "--target", target, *serving)
    assert result.exit_code == 0, result.output
    assert (folder / "configs" / f"{target}.sh").exists()


def test_a_target_of_the_plan_is_not_advised_again(folder, monkeypatch):
    """What fails for a target that the plan was made for is no matter of targets."""

    def fail(*_, **__):
        message = "INC would select other modules"
        raise SelectionError(message)

    monkeypatch.setattr("inc_mp_plugin.stages.files.write_files", fail)
    with pytest.raises(SelectionError, match="^INC would select other modules$"):
        emit_files(folder, "cpu-qdq", [])
    with pytest.raises(SelectionError, match="^INC would select other modules; solve with vllm-gaudi among"):
        emit_files(folder, "vllm-gaudi", [])


@pytest.mark.parametrize("target", ["vllm-gaudi", "cpu-qdq"])
@pytest.mark.parametrize("serving", ["attention=flash", "reuse_cache=true"])
def test_keys_of_another_consumer_change_nothing(folder, target, serving):
    call("solve", folder, "targets=[cpu-qdq,vllm-gaudi]")
    path = folder / "configs" / f"{target}.json"
    assert call("emit", folder, "--target", target).exit_code == 0
    plain = path.read_bytes()
    assert call("emit", folder, "--target", target, serving).exit_code == 0
    assert path.read_bytes() == plain


def test_a_cpu_has_no_cache_that_could_differ(folder):
    call("solve", folder, "targets=[cpu-qdq]")
    assert call("emit", folder, "--target", "cpu-qdq", "kv_cache=fp8").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["kv_cache=maybe"], "override kv_cache=maybe: input should be 'bf16' or 'fp8'"),
        (
            ["reuse_cache=maybe"],
            "override reuse_cache=maybe: it must be true or false",
        ),
        (["tau=1"], "unknown key of emit 'tau'"),
    ],
)
def test_wrong_words_for_emit(folder, arguments, message):
    result = call("emit", folder, "--target", "optimum-habana", *arguments)
    assert result.exit_code == 2
    assert message in told(result)


@pytest.mark.parametrize(("name", "alike"), [("mixtral", True), ("llama", False)])
def test_a_mixtral_has_one_attention_on_optimum_habana(name, alike):
    graph = mp.capture(helpers.language_model(name), {"input_ids": helpers.tokens(2)})
    captured, target, eager = Captured.of(graph), get_target("optimum-habana"), mp.Serving()
    assert runs_alike(target, captured, eager, mp.Serving(attention="flash")) == alike
    assert not runs_alike(target, captured, eager, mp.Serving(kv_cache="fp8"))
    assert runs_alike(get_target("cpu-qdq"), captured, eager, mp.Serving("fp8", "flash", True))


@pytest.mark.parametrize(
    ("overrides", "stay"),
    [([], True), (["seed=7"], True), (["tau=0.00005"], False), (["targets=[cpu-qdq]"], False)],
    ids=["nothing new", "same plan", "another plan", "another target"],
)
def test_solve_leaves_no_file_of_a_former_plan(folder, overrides, stay):
    (folder / "configs" / "notes.txt").write_text("mine")
    before = configs(folder)
    result = call("solve", folder, *overrides)
    assert configs(folder) == (before if stay else {"notes.txt"})
    assert ("removed from" in told(result)) != stay
    assert ("run `inc-mp emit` and `inc-mp validate` for it" in told(result)) != stay


def test_solve_that_fails_leaves_the_files(folder):
    before = configs(folder)
    assert call("solve", folder, "gain_fraction=0.9", "tau=1e-6").exit_code == 3
    assert configs(folder) == before


def test_tune_leaves_no_file_of_another_target(project, folder):
    call("solve", folder, "targets=[cpu-qdq,optimum-habana,vllm-gaudi]")
    call("emit", folder, "--target", "vllm-gaudi")
    (folder / "configs" / "notes.txt").write_text("mine")
    result = call("tune", project / "recipe.yaml", "targets=[cpu-qdq]", "--out", folder)
    assert result.exit_code == 0, result.output
    assert configs(folder) == {"cpu-qdq.json", "cpu-qdq-measure.json", "notes.txt"}
    assert "vllm-gaudi.json, vllm-gaudi-measure.json, vllm-gaudi.sh" in told(result)


def test_a_plan_for_narrower_targets_than_the_recipe_is_shown(project, tmp_path):
    """No target at all lets products run in BF16, which cpu-bf16 of the recipe does not."""
    keys = ["formats=[bf16]", "targets=[cpu-bf16]", "validation=null", "objective=theoretical_time", "tau=1"]
    assert call("tune", project / "recipe.yaml", *keys, "device=h100", "--out", tmp_path).exit_code == 0
    result = call("solve", tmp_path, "targets=[]")
    assert result.exit_code == 0, result.output
    formats = read(tmp_path, "plan.json")["formats"]
    assert formats["model.layers.0.self_attn.matmul_qk"] == "bf16"


def test_a_cache_that_was_not_measured_is_not_said_to_hold(folder):
    """INC has no KV cache on a CPU: measured is the plan's loss without it, predicted the whole."""
    assert call("solve", folder, "kv_cache=fp8", "tau=1").exit_code == 0
    plan = read(folder, "plan.json")
    text = told(call("validate", folder))
    seen = read(folder, "validation.json")
    said = text.split("On 4 held-out samples through INC, ")[1].split("The base model's own KL")[0]
    assert "held" not in said
    assert f"the NRMSE of the plan's ops is {seen['nrmse']:.4g}." in text
    assert f"an NRMSE of {plan['predicted']['nrmse']:.4g} with the cache (tau 1) is predicted" in text
    assert seen["depends_on"]["kv_cache"] == "fp8 (not measured)"
    assert seen["plan"]["predicted"] < plan["predicted"]["loss_mse"]
    assert call("solve", folder, "tau=1").exit_code == 0
    text = told(call("validate", folder))
    assert "the plan's NRMSE is" in text
    assert "(tau 1: not decided)" in text
    assert "kv_cache" not in read(folder, "validation.json")["depends_on"]


def test_the_share_of_the_cache_and_of_the_ops_is_of_one_budget(folder):
    result = call("solve", folder, "kv_cache=fp8", "tau=1")
    plan, lines = read(folder, "plan.json"), told(result)
    cache = float(re.search(r"The KV cache in FP8 takes ([\d.]+) % of the allowance", lines)[1])
    assert cache == pytest.approx(100 * _cache_loss_mse(folder) / plan["budget"], abs=0.051)


def _cache_loss_mse(folder):
    """2^-6 / 12, alpha of E4M3, times what the sensitivities say of the second inputs of both products."""
    arrays = np.load(folder / "sensitivity.npz")
    second = next(arrays[key] for key in arrays.files if "second" in key and "input" in key)
    return float(second.sum(axis=1).mean()) * 2.0**-6 / 12


def test_what_inc_has_no_scale_for_is_named(tmp_path):
    """From the artefacts alone, also for old ones, which do not hold the maxabs."""
    batch, model = {"input_ids": helpers.tokens(2)}, helpers.language_model("llama")
    lost = "model.layers.1.mlp.gate_proj"
    model.get_submodule(lost).weight.data.zero_()
    graph = mp.capture(model, batch)
    arrays = to_arrays(mp.measure_sensitivity(model, graph, [batch]))
    recipe = parse_recipe(
        {"model": {"name_or_path": "x", "dtype": "fp32"}, "calibration": {"data": "x.jsonl"}, "tau": 1.0},
        ["targets=[vllm-gaudi]"],
        "here",
    )
    old = {name: array for name, array in arrays.items() if not name.startswith("maxabs_")}
    for stored, held in ((arrays, 3), (old, 0)):
        run = Run(tmp_path)
        seen = from_arrays(stored)
        vars(run).update(graph=graph, sensitivity=seen, recipe=recipe, job=job_of(recipe))
        gains = mp.memory_gains(graph, ("fp32", "fp8_e4m3"))
        vars(run)["plan"] = mp.solve(gains, run.losses, tau=1.0, demands=run.demands)
        linear = {op.name for op in graph.ops if op.kind == "linear"}
        assert (
            len(linear - set(run.plan.quantized)) == len(linear - set(run.losses.ops)) + (held and 1) == held
        )
        # gate_proj holds up_proj back, with which it is one module on vLLM
        assert (
            run.held_back
            == (
                "2 ops stay in fp32: INC has no scale for a weight of zeros",
                "1 ops stay in fp32: INC has no scale for an input of zeros that calibration gave it",
            )[: held and 2]
        )


def test_what_stays_in_the_base_format_is_named(tmp_path):
    """Experts that no sample reached hold the others of their block back, on vLLM, and are counted."""
    batch = {"input_ids": helpers.tokens(2)}
    model = helpers.mixture("mixtral")
    graph = mp.capture(model, batch)
    seen = mp.measure_sensitivity(model, graph, [batch])
    experts = [op.name for op in graph.ops if ".layers.0." in op.name and ".experts." in op.name]
    missed = experts[:3]
    seen = seen.of([op for op in seen.ops if op not in missed])
    demanded = mp.demands(graph, ["vllm-gaudi"])
    plan = mp.solve(mp.memory_gains(graph, ("fp32", "fp8_e4m3")), seen, tau=1.0, demands=demanded)
    assert not set(experts) & set(plan.quantized)
    recipe = parse_recipe(
        {"model": {"name_or_path": "x", "dtype": "fp32"}, "calibration": {"data": "x.jsonl"}, "tau": 1.0},
        ["targets=[vllm-gaudi]"],
        "here",
    )
    run = Run(tmp_path)
    vars(run).update(graph=graph, sensitivity=seen, plan=plan, recipe=recipe, job=job_of(recipe))
    rest = len(experts) - len(missed)
    assert run.held_back == (
        f"3 ops stay in fp32: no sample reached them, and so do {rest} ops that share one format with them; "
        "give more samples",
    )


@pytest.mark.parametrize(("constraint", "yardstick"), [(None, "kl"), ("loss", "loss")])
def test_a_frontier_is_drawn_by_the_yardstick_of_the_recipe(tmp_path, constraint, yardstick):
    model, batches = helpers.language_model("llama"), [{"input_ids": helpers.tokens(4, 8)}]
    mp.tune(model, batches, tau=0.01, kl=0.001, constraint=constraint, out=tmp_path)
    (curves,) = draw_frontier(tmp_path, points=4, draws=1).values()
    assert curves.yardstick == yardstick
    assert read(tmp_path, "frontier.json")["depends_on"]["yardstick"] == yardstick


def test_a_frontier_and_a_report_are_of_the_plan_that_is_there(folder):
    """Not of the recipe's targets: with a cache in FP8, even the plan of no op has a price."""
    assert call("solve", folder, "targets=[vllm-gaudi]", "kv_cache=fp8", "tau=1").exit_code == 0
    of_recipe, of_plan = Run(folder), Run(folder).as_planned
    assert of_recipe.losses.loss.cache_cost == 0 < of_plan.losses.loss.cache_cost
    (curves,) = draw_frontier(folder, points=3, draws=1).values()
    assert curves.curves[0].loss_mse[0] == pytest.approx(of_plan.losses.loss.cache_cost)
    shown = read_artefacts(folder)
    assert shown.frontiers == {"memory": curves}
    assert shown.losses.loss.cache_cost == of_plan.losses.loss.cache_cost
    assert call("solve", folder).exit_code == 0  # the recipe's own plan again
    assert "targets" in read_artefacts(folder).outdated["frontier"]
