"""INC's other flows: two processes, saving and loading; and what is left behind by any of them."""

import copy
import gc
import json
import signal
import tempfile
import weakref
from pathlib import Path

import capabilities
import forked
import helpers
import pytest
import torch
from calibration import INPUTS, calibrate, patched
from neural_compressor.torch.quantization import (
    FP8Config,
    convert,
    finalize_calibration,
    load,
    prepare,
    quantize,
    save,
)

import inc_mp_plugin as mp
from inc_mp_plugin.core.errors import InputError

pytestmark = pytest.mark.usefixtures("registered")

TAU = 0.0005


def written(mode, **ours):
    path = Path(f"{mode.lower()}.json")
    path.write_text(json.dumps({"mode": mode, "ip_mse": {"tau": TAU, **ours}}))
    return FP8Config.from_json_file(str(path))


def measured(**ours):
    model = prepare(helpers.language_model("llama"), written("MEASURE", **ours))
    calibrate(model)
    finalize_calibration(model)
    return model


def test_measured_here_and_converted_elsewhere():
    at_once = quantize(helpers.language_model("llama"), mp.IPMSEConfig(tau=TAU), run_fn=calibrate)
    before = helpers.state(helpers.language_model("llama"))
    model = measured()
    after = {**helpers.state(model), "attributes": before["attributes"]}  # INC's own stay for its convert
    helpers.assert_same_state(before, after)
    converted = convert(helpers.language_model("llama"), written("QUANTIZE"))
    assert patched(converted) == patched(at_once) != set()
    assert torch.equal(converted(INPUTS[0]).logits, at_once(INPUTS[0]).logits)


def test_one_measurement_serves_every_threshold():
    measured()
    sizes = [
        len(patched(convert(helpers.language_model("llama"), written("QUANTIZE", tau=tau))))
        for tau in (1e-9, TAU, 1.0)
    ]
    assert sizes[0] == 0 < sizes[1] < sizes[2] == 15


def test_products_are_measured_and_converted_too():
    ours = {"tau": 1.0, "objective": "theoretical_time", "device": "h100"}
    measured(**ours)
    model = convert(helpers.language_model("llama"), written("QUANTIZE", **ours))
    assert "model.layers.1.self_attn.matmul_av" in patched(model)


def test_what_was_not_measured_is_said():
    with pytest.raises(InputError, match=r"no sensitivities in hqt_output/ip_mse/measure"):
        convert(helpers.language_model("llama"), written("QUANTIZE"))
    measured()
    with pytest.raises(InputError, match="of another model"):
        convert(helpers.language_model("llama", seed=5), written("QUANTIZE"))


def killed_at(stage, mode, config):
    """Run one process of the flow, killed in the middle of a stage; or whole, for no stage."""
    return forked.run(Path(__file__).with_name("two_processes.py"), mode, config, stage)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["calibrate", "finalize", "convert"])
def test_a_killed_process_can_be_run_again(stage):
    for mode in ("MEASURE", "QUANTIZE"):
        written(mode)
    mode = "QUANTIZE" if stage == "convert" else "MEASURE"
    if mode == "QUANTIZE":
        assert killed_at("", "MEASURE", "measure.json").returncode == 0
    killed = killed_at(stage, mode, f"{mode.lower()}.json")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    if mode == "MEASURE":
        assert killed_at("", "MEASURE", "measure.json").returncode == 0
    again = killed_at("", "QUANTIZE", "quantize.json")
    assert again.returncode == 0, again.stderr
    at_once = quantize(helpers.language_model("llama"), mp.IPMSEConfig(tau=TAU), run_fn=calibrate)
    assert json.loads(again.stdout.splitlines()[-1]) == sorted(patched(at_once))


DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def saved_and_loaded(name, dtype, config):
    """What INC made of a model, and the same from disk."""
    model = quantize(helpers.language_model(name).to(dtype), config, run_fn=calibrate)
    save(model, "saved")
    loaded = load("saved", format="huggingface", device="cpu")
    logits, again = model(INPUTS[0]).logits, loaded(INPUTS[0]).logits
    assert torch.equal(again, logits)
    assert logits.dtype == (torch.bfloat16 if dtype == torch.float16 else dtype)  # INC has no FP16
    return patched(model), patched(loaded)


@pytest.mark.parametrize("dtype", helpers.mostly_slow(DTYPES, torch.float32), ids=str)
@pytest.mark.parametrize("objective", ["memory", "theoretical_time"])
def test_a_saved_model_loads_as_it_was(objective, dtype):
    pytest.importorskip("accelerate")
    config = mp.IPMSEConfig(tau=1.0, objective=objective, device="h100")
    saved, loaded = saved_and_loaded("llama", dtype, config)
    assert loaded == saved
    assert any("matmul" in name for name in saved) == (objective != "memory")


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("mixtral", torch.float16),
        pytest.param("mixtral", torch.float32, marks=pytest.mark.slow),
        pytest.param("mixtral", torch.bfloat16, marks=pytest.mark.slow),
        pytest.param("gpt_oss", torch.float32, marks=[pytest.mark.slow, capabilities.fused_experts]),
    ],
    ids=str,
)
def test_a_saved_mixture_of_experts_loads_as_it_was(name, dtype):
    pytest.importorskip("accelerate")
    saved, loaded = saved_and_loaded(name, dtype, mp.IPMSEConfig(tau=1.0))
    assert loaded == saved
    assert any(".experts." in name for name in saved)


def tensor_bytes():
    gc.collect()
    alive = [entry for entry in gc.get_objects() if type(entry) in (torch.Tensor, torch.nn.Parameter)]
    storages = [tensor.untyped_storage() for tensor in alive]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def globals_of_inc():
    from neural_compressor.torch.algorithms.fp8_quant._core.patching_common import parent_child_mod_dict
    from neural_compressor.torch.algorithms.fp8_quant._core.save_measure import gmod_list
    from neural_compressor.torch.algorithms.fp8_quant.model_configs import IMOD_DICT

    return len(IMOD_DICT) + len(parent_child_mod_dict) + len(gmod_list)


CONFIGS = {
    "ours": lambda: mp.IPMSEConfig(tau=TAU),
    "INC's": lambda: FP8Config(strategy="ip_mse", ip_mse={"tau": TAU}),
}


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_ten_quantizations_leave_nothing(config, tmp_path, monkeypatch):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    sizes, models = [], []
    for _ in range(10):
        model = quantize(helpers.language_model("llama"), config(), run_fn=calibrate)
        models.append(weakref.ref(model))
        assert not model._forward_pre_hooks
        assert "_ip_mse_prepared" not in vars(model)
        del model
        sizes.append(tensor_bytes())
    assert sizes[2] == sizes[-1]
    assert not any(ref() is not None for ref in models)
    assert globals_of_inc() == 0
    assert list(temporary.iterdir()) == []
    assert {path.name for path in Path().iterdir()} <= {"hqt_output", "temporary"}


def interrupted(model):
    calibrate(model)
    raise KeyboardInterrupt


def never_called(model):
    del model


BROKEN = {
    "interrupted": (mp.IPMSEConfig, interrupted, KeyboardInterrupt),
    "never called": (mp.IPMSEConfig, never_called, InputError),
    "no plan": (
        lambda tau: mp.IPMSEConfig(tau=tau, gain_fraction=1.0),
        calibrate,
        mp.InfeasibleError,
    ),
}


@pytest.mark.parametrize(("config", "run", "error"), BROKEN.values(), ids=BROKEN.keys())
def test_after_an_error_the_model_is_as_it_came(config, run, error):
    model = helpers.language_model("llama")
    before, attributes = helpers.state(model), set(vars(model))
    with pytest.raises(error):
        quantize(model, config(tau=1e-9), run_fn=run)
    helpers.assert_same_state(before, helpers.state(model))
    assert not patched(model)
    assert set(vars(model)) == attributes
    assert not model._forward_pre_hooks
    assert globals_of_inc() == 0
    assert patched(quantize(model, mp.IPMSEConfig(tau=1.0), run_fn=calibrate))


@pytest.mark.slow
def test_several_models_at_a_time():
    """Calibrated in turns; each is planned from what it was called with itself."""
    first, other = helpers.language_model("llama"), helpers.language_model("qwen3")
    alone = [
        patched(quantize(copy.deepcopy(model), mp.IPMSEConfig(tau=TAU), run_fn=calibrate))
        for model in (first, other)
    ]
    prepared = [
        prepare(model, mp.IPMSEConfig(tau=TAU, dump_stats_path=f"./{name}/measure"))
        for model, name in ((first, "one"), (other, "other"))
    ]
    for ids in INPUTS:
        for model in prepared:
            model(input_ids=ids)
    assert [patched(convert(model)) for model in prepared] == alone
