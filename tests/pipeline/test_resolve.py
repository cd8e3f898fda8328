"""From a recipe to a job: what a recipe leaves open is decided once, and by hand here."""

import pytest
from helpers import call, read, told

import inc_mp_plugin as mp
from inc_mp_plugin.core.graph import Op
from inc_mp_plugin.pipeline.recipe import parse_recipe
from inc_mp_plugin.pipeline.resolve import job_of, timing_of, value_scales
from inc_mp_plugin.scales.methods import Scales
from inc_mp_plugin.scales.served import ServedScales


def recipe(*overrides):
    content = {
        "model": {"name_or_path": "org/tiny", "dtype": "bf16"},
        "calibration": {"data": "calibration.jsonl", "sequence_length": 48},
        "tau": 0.01,
    }
    return parse_recipe(content, list(overrides), "here")


def test_the_defaults_of_a_recipe():
    job = job_of(recipe())
    assert job.all_formats == ("bf16", "fp8_e4m3")
    assert job.goal == {
        "objective": "memory",
        "tau": 0.01,
        "kl": None,
        "gain_fraction": None,
        "constraint": None,
        "strategy": "ip_mse",
        "seed": 0,
        "confidence": None,
        "budget": None,
    }
    assert (job.noise, job.noise_scales, job.value_scales) == ("uniform", None, None)
    assert job.consumer_scales == (Scales("maxabs_arbitrary", "cpu"),)
    assert (job.request, job.script_request) == (mp.Request(48), None)
    assert (job.timing, job.heldout, job.allowed, job.emits) == (None, None, None, True)


def test_a_request_is_priced_and_written_into_scripts():
    job = job_of(recipe("request={prompt_tokens: 7, output_tokens: 3, batch_size: 2}"))
    assert job.request == job.script_request == mp.Request(7, 3, 2)


@pytest.mark.parametrize(
    ("overrides", "scales"),
    [
        (["targets=[cpu-qdq]"], Scales("maxabs_arbitrary", "cpu")),
        (["targets=[vllm-gaudi]", "device=gaudi3"], Scales("maxabs_hw", "gaudi3")),
        (["targets=[optimum-habana]", "scale_method=maxabs_pow2"], Scales("maxabs_pow2", "gaudi2")),
        (["targets=[vllm,cpu-qdq]"], ServedScales("dynamic", "vllm")),
    ],
    ids=["on a CPU", "vLLM on Gaudi 3", "a method that is given", "vLLM"],
)
def test_measured_noise_and_values_round_as_the_first_target_does(overrides, scales):
    assert job_of(recipe(*overrides, "noise=measured")).noise_scales == scales
    assert job_of(recipe(*overrides, "strategy=alps")).value_scales == scales
    assert value_scales(recipe(*overrides)) == scales


def test_every_consumer_counts_with_its_own_scales():
    job = job_of(recipe("targets=[cpu-qdq,vllm-gaudi,optimum-habana]", "device=gaudi3"))
    assert job.consumer_scales == (
        Scales("maxabs_arbitrary", "cpu"),
        Scales("maxabs_hw", "gaudi3"),
        Scales("maxabs_hw", "gaudi3"),
    )


def test_a_server_that_is_the_first_target_rounds_in_its_own_way():
    dynamic, on_a_cpu = ServedScales("dynamic", "vllm"), Scales("maxabs_arbitrary", "cpu")
    job = job_of(recipe("targets=[vllm,cpu-qdq,vllm-gaudi]", "device=gaudi3"))
    assert job.consumer_scales == (dynamic, Scales("maxabs_hw", "gaudi3"), on_a_cpu)
    assert job_of(recipe("targets=[cpu-qdq,vllm]")).consumer_scales == (on_a_cpu,)
    heldout = "validation={data: heldout.jsonl}"
    assert job_of(recipe("targets=[vllm]", heldout)).heldout.through == "hooks"
    assert job_of(recipe("targets=[cpu-qdq,vllm]", heldout)).heldout.through == "auto"


def test_time_is_measured_where_it_is_asked_for():
    assert timing_of(recipe()) is None
    assert timing_of(recipe("objective=empirical_time")) == mp.TimingSettings(device="cpu")
    asked = "timing={device: cuda, repeats: 5, budget_s: 60, every_group: true}"
    settings = mp.TimingSettings(device="cuda", repeats=5, budget_s=60.0, every_group=True)
    assert job_of(recipe(asked)).timing == settings


def test_no_file_is_read_for_held_out_samples_before_they_are_needed():
    job = job_of(recipe("validation={data: nowhere.jsonl, samples: 9, random_plans: 5}"))
    assert (job.heldout.samples, job.heldout.random_plans, job.heldout.seed) == (9, 5, 0)
    with pytest.raises(mp.InputError, match="nowhere.jsonl does not exist"):
        job.heldout.identify()


def test_ops_that_may_leave_the_base_format():
    kinds = {"a": "linear", "b": "bgemm", "c": "linear"}
    ops = tuple(Op(name, kind, 1, 1, 1) for name, kind in kinds.items())
    graph = mp.Graph(ops, (("a",), ("b",), ("c",)), (), {})
    assert job_of(recipe()).runnable(graph) == ["a", "b", "c"]
    assert job_of(recipe(), allowed=["b", "c"]).runnable(graph) == ["b", "c"]


def test_a_price_that_there_is_not_is_refused_before_anything_is_measured(project, tmp_path):
    out = tmp_path / "out"
    result = call("tune", project / "recipe.yaml", "objective=theoretical_time", "--out", out)
    assert result.exit_code == 2
    assert "no peak is known for fp32 on gaudi2" in told(result)
    assert not out.exists()


def test_a_scale_method_that_a_cpu_does_not_have_is_measured_with_the_default(project, tmp_path):
    """On a CPU there are no scales of a Gaudi's hardware; the file for the Gaudi names them."""
    given = ["targets=[optimum-habana]", "scale_method=maxabs_hw", "validation.random_plans=3"]
    result = call("tune", project / "recipe.yaml", *given, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert read(tmp_path, "validation.json")["plan"]["measured"] > 0
    assert read(tmp_path, "configs/optimum-habana.json")["scale_method"] == "maxabs_hw"
