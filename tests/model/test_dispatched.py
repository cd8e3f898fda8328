"""Models that accelerate keeps in memory and on a disk are measured as those that are all in one place."""

import helpers
import numpy as np
import pytest
import torch
import transformers
from accelerate import cpu_offload, disk_offload, dispatch_model
from neural_compressor.torch.quantization import quantize

import inc_mp_plugin as mp
from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.core.estimate import Estimate
from inc_mp_plugin.libraries.accelerate import is_dispatched
from inc_mp_plugin.model import placing
from inc_mp_plugin.model.loading import load_model
from inc_mp_plugin.model.subject import hash_tensors
from inc_mp_plugin.model.weights import stored_tensors
from inc_mp_plugin.stages.sensitivity_arrays import to_arrays

BATCHES = [{"input_ids": helpers.tokens(size, seed=size)} for size in (3, 2)]
FP8 = {"scales": mp.Scales("maxabs_arbitrary", "cpu"), "formats": ("fp8_e4m3",)}
ROOM = {"cpu": 250_000}  # bytes: some of the weights; older transformers refuse a model that is all on disk


def parts_of(model, folder):
    """One block and the embedding stay in memory, another block and the head go to a disk."""
    places = {name: "cpu" for name, _ in model.named_children()} | {"lm_head": "disk"}
    del places["model"]
    places |= {f"model.{name}": "cpu" for name, _ in model.model.named_children() if name != "layers"}
    places |= {"model.layers.0": "cpu", "model.layers.1": "disk"}
    return dispatch_model(model, places, main_device="cpu", offload_dir=folder)


def by_blocks(model, folder):
    """A block's weights are all brought at once, as with models whose code reads weights of its children."""
    return disk_offload(model, folder, "cpu", preload_module_classes=["LlamaDecoderLayer"])


def by_transformers(model, folder):
    model.save_pretrained(folder)
    return transformers.AutoModelForCausalLM.from_pretrained(folder, device_map="auto", max_memory=ROOM)


WAYS = {
    "all on a disk": lambda model, folder: disk_offload(model, folder, "cpu"),
    "all in memory": lambda model, folder: cpu_offload(model, execution_device="cpu"),
    "some on a disk": parts_of,
    "by blocks": by_blocks,
    "by transformers": by_transformers,
}
MODES = {
    "loss": {},
    "both": {"yardstick": "both", "estimate": Estimate(draws=2), **FP8},
}


def tensors_of(model):
    return {name: (t.device, t.requires_grad) for name, t in model.state_dict(keep_vars=True).items()}


@pytest.mark.parametrize("memory", ["low", pytest.param("high", marks=pytest.mark.slow)])
@pytest.mark.parametrize("mode", [pytest.param(MODES["loss"], marks=pytest.mark.slow), MODES["both"]])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_model_in_several_places_has_the_same_sensitivities(way, mode, memory, tmp_path):
    plain = helpers.language_model("llama")
    graph = mp.capture(plain, BATCHES[0])
    expected = to_arrays(mp.measure_sensitivity(plain, graph, BATCHES, memory="high", **mode))
    model = way(helpers.language_model("llama"), tmp_path)
    before = tensors_of(model)
    assert any(device.type == "meta" for device, _ in before.values())
    assert mp.capture(model, BATCHES[0]) == graph
    measured = to_arrays(mp.measure_sensitivity(model, graph, BATCHES, memory=memory, **mode))
    assert measured.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(measured[name], array, err_msg=name)
    assert tensors_of(model) == before
    with torch.no_grad():
        assert torch.equal(model(**BATCHES[0]).logits, plain(**BATCHES[0]).logits)


@pytest.mark.parametrize("name", helpers.mostly_slow(["gpt2", "gemma3", "opt"], "gpt2"))  # heads are tied
@helpers.since_5
def test_other_architectures(name, tmp_path):
    plain = helpers.language_model(name)
    graph = mp.capture(plain, BATCHES[0])
    expected = to_arrays(mp.measure_sensitivity(plain, graph, BATCHES, **MODES["both"]))
    model = by_transformers(helpers.language_model(name), tmp_path)
    measured = to_arrays(mp.measure_sensitivity(model, graph, BATCHES, **MODES["both"]))
    for key, array in expected.items():
        np.testing.assert_array_equal(measured[key], array, err_msg=key)


def test_values_are_told_by_their_own_hash(tmp_path):
    plain = helpers.language_model("llama")
    expected = hash_tensors(stored_tensors(plain))
    assert hash_tensors(stored_tensors(disk_offload(plain, tmp_path, "cpu"))) == expected
    other = helpers.language_model("llama", seed=1)
    assert hash_tensors(stored_tensors(cpu_offload(other, execution_device="cpu"))) != expected


def test_tune_makes_the_plan_of_the_whole_model(tmp_path):
    keys = {"kl": 0.001, "noise": "measured", "targets": ["cpu-qdq"]}
    plain = mp.tune(helpers.language_model("llama"), BATCHES, out=tmp_path / "plain", **keys)
    model = disk_offload(helpers.language_model("llama"), tmp_path / "weights", "cpu")
    plan = mp.tune(model, BATCHES, out=tmp_path / "out", **keys)
    assert (plan.formats, plan.predicted_kl) == (plain.formats, plain.predicted_kl)


@pytest.fixture
def little_room(monkeypatch):
    """The machine has little memory."""
    monkeypatch.setattr(placing, "room", lambda: ROOM)


@helpers.since_5
def test_a_recipe_with_a_device_map_makes_the_plan_of_the_whole_model(
    finished, project, tmp_path, little_room
):
    changes = ["run.device_map=auto", "validation.through=hooks"]
    result = helpers.call("tune", project / "recipe.yaml", *changes, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "GB on disk" in result.output and "memory: low, because not all" in result.output
    plans = [helpers.read(folder, "plan.json") for folder in (finished, tmp_path / "out")]
    for key in ("formats", "predicted"):
        assert plans[0][key] == plans[1][key]
    by_inc, by_hooks = (helpers.read(folder, "validation.json") for folder in (finished, tmp_path / "out"))
    assert (by_inc["through"], by_hooks["through"]) == ("inc", "hooks")
    for one, other in zip(by_inc["points"], by_hooks["points"], strict=True):
        assert other["measured"] == pytest.approx(one["measured"], rel=1e-6)


def test_where_all_fits_into_memory_a_device_map_changes_nothing(project):
    model = load_model(str(project / "model"), "fp32", trust_remote_code=False, device_map="auto")
    assert not is_dispatched(model)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (["run.parallel=fsdp"], "run.device_map is of one process"),
        (["model.weights=random"], "run.device_map is of weights in files"),
        (["strategy=alps"], "strategy: alps needs the whole model in one place"),
        (["timing={device: cpu}"], "timing needs the whole model in one place"),
        (["validation.through=inc"], "validation through INC needs the whole model in one place"),
        (["run.device_map=balanced"], "override run.device_map=balanced: input should be 'auto'"),
    ],
)
def test_what_a_device_map_does_not_go_with_is_one_line(project, tmp_path, changes, text):
    result = helpers.call("tune", project / "recipe.yaml", "run.device_map=auto", *changes, "--out", tmp_path)
    assert result.exit_code == 2
    assert text in helpers.told(result)


@pytest.mark.parametrize("run", [{"device_map": "auto"}, {"parallel": "fsdp"}])
def test_a_model_in_memory_is_not_loaded_again(run, tmp_path):
    model, text = (
        helpers.language_model("llama"),
        "loads the model, and this one is in memory; give its name in",
    )
    with pytest.raises(InputError, match=text):
        mp.tune(model, BATCHES, kl=0.001, run=run, out=tmp_path)
    with pytest.raises(InputError, match=text):
        mp.IPMSEConfig(kl=0.001, run=run, dump_stats_path=str(tmp_path))


def test_a_model_on_two_devices_is_told_of_fsdp(tmp_path):
    model = disk_offload(helpers.language_model("llama"), tmp_path, "cpu")
    model.model.layers[1].mlp.up_proj._hf_hook.execution_device = "cuda:1"
    with pytest.raises(InputError, match=r"runs on several devices \(cpu, cuda:1\).*run\.parallel=fsdp"):
        mp.capture(model, BATCHES[0])


def test_what_needs_the_whole_model_is_one_line(tmp_path):
    plain = helpers.language_model("llama")
    plan = mp.tune(plain, BATCHES, gain_fraction=0.5, out=tmp_path / "plan")
    model = disk_offload(helpers.language_model("llama"), tmp_path, "cpu")
    with pytest.raises(InputError, match=r"offloaded by accelerate \(device_map\); load all of it"):
        mp.apply(model, plan, BATCHES)
    with pytest.raises(InputError, match=r"offloaded by accelerate \(device_map\); load all of it"):
        quantize(
            model, mp.IPMSEConfig(kl=0.001, dump_stats_path=str(tmp_path / "inc")), run_fn=lambda m: None
        )


@helpers.since_5
def test_stacked_experts_need_the_whole_model(tmp_path):
    model = disk_offload(helpers.mixture("qwen3_moe"), tmp_path / "experts", "cpu")
    with pytest.raises(InputError, match="has experts, and is offloaded by accelerate"):
        mp.capture(model, BATCHES[0])
