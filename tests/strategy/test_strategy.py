"""`ip_mse` inside INC: every way to call it, however calibration runs."""

import copy
import json
import re
from collections import Counter

import helpers
import pytest
import torch
from calibration import INPUTS, patched
from neural_compressor.torch.quantization import FP8Config, convert, prepare, quantize
from torch import nn

import inc_mp_plugin as mp
from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.strategy.batch_recorder import BatchRecorder

pytestmark = pytest.mark.usefixtures("registered")

TAU = 0.0005


def keyword(model):
    for ids in INPUTS:
        model(input_ids=ids)


def positional(model):
    for ids in INPUTS:
        model(ids)


def generating(model):
    for ids in INPUTS:
        model.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=0)


def generating_in_place(model):
    for ids in INPUTS:
        model.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=0, cache_implementation="static")


def under(mode, run):
    def calibrate(model):
        with mode():
            run(model)

    return calibrate


CALIBRATIONS = {
    "no_grad": under(torch.no_grad, keyword),
    "inference_mode": under(torch.inference_mode, positional),
    "gradients off": under(lambda: torch.set_grad_enabled(False), keyword),
    "plain": keyword,
    "generate": under(torch.no_grad, generating),
    "generate, static cache": under(torch.no_grad, generating_in_place),
}


def by_quantize(config):
    return lambda model, calibrate: quantize(model, config(), run_fn=calibrate)


def in_two_steps(config):
    def run(model, calibrate):
        prepared = prepare(model, config())
        calibrate(prepared)
        return convert(prepared)

    return run


def nested():
    return FP8Config(strategy="ip_mse", ip_mse={"tau": TAU})


FLOWS = {
    "quantize": by_quantize(lambda: mp.IPMSEConfig(tau=TAU)),
    "prepare and convert": in_two_steps(lambda: mp.IPMSEConfig(tau=TAU)),
    "dict": by_quantize(lambda: {"ip_mse": {"tau": TAU}}),
    "FP8Config, quantize": by_quantize(nested),
    "FP8Config, two steps": in_two_steps(nested),
    "FP8Config, flat": by_quantize(lambda: FP8Config(strategy="ip_mse", tau=TAU)),
}


def expected(model, yardstick="loss", **settings):
    """What the plugin plans by hand for these batches."""
    batches = [{"input_ids": ids} for ids in INPUTS]
    graph = mp.capture(model, batches[0])
    gains = mp.memory_gains(graph, ("fp32", "fp8_e4m3"))
    measured = mp.measure_sensitivity(model, graph, batches, yardstick=yardstick)
    plan = mp.solve(gains, measured, **settings)
    assert plan.binds  # else the test shows nothing
    return set(plan.quantized)


@pytest.mark.parametrize("flow", helpers.mostly_slow(FLOWS, *list(FLOWS)[:3]))
@pytest.mark.parametrize("mode", ["no_grad", pytest.param("inference_mode", marks=pytest.mark.slow)])
def test_every_flow_quantizes_the_plan(flow, mode):
    model = helpers.language_model("llama")
    planned = expected(model, tau=TAU)
    result = FLOWS[flow](model, CALIBRATIONS[mode])
    assert patched(result) == planned
    assert torch.isfinite(result(INPUTS[0]).logits).all()


@pytest.mark.parametrize(
    "mode",
    [
        pytest.param(m, marks=() if m in ("inference_mode", "generate") else pytest.mark.slow)
        for m in CALIBRATIONS
    ],
)
def test_calibration_may_run_in_any_mode(mode):
    model = helpers.language_model("llama")
    planned = expected(model, tau=TAU)
    converted = patched(FLOWS["prepare and convert"](model, CALIBRATIONS[mode]))
    if "generate" in mode:  # its masks and positions may choose another of two layers that gain alike
        sets = converted, planned
        converted, planned = (Counter(re.sub(r"layers\.\d+", "", op) for op in ops) for ops in sets)
    assert converted == planned


def test_not_in_place_leaves_the_model_as_it_came():
    model = helpers.language_model("llama")
    before = helpers.state(model)
    result = quantize(model, mp.IPMSEConfig(tau=TAU), run_fn=keyword, inplace=False)
    helpers.assert_same_state(before, helpers.state(model))
    assert patched(result)


def test_products_are_exposed_when_time_counts():
    config = mp.IPMSEConfig(tau=1.0, objective="theoretical_time", device="h100")
    result = quantize(helpers.language_model("llama"), config, run_fn=keyword)
    assert "model.layers.1.self_attn.matmul_av" in patched(result)


def test_gain_fraction():
    model = helpers.language_model("llama")
    planned = expected(model, "kl", gain_fraction=0.5)  # by default the least KL divergence
    config = mp.IPMSEConfig(gain_fraction=0.5)
    assert patched(quantize(model, config, run_fn=keyword)) == planned


@pytest.mark.slow
@pytest.mark.parametrize("method", ["eagl", "alps"])
def test_other_prices(method, tmp_path):
    model = helpers.language_model("llama")
    batches = [{"input_ids": ids} for ids in INPUTS]
    planned = mp.tune(model, batches, strategy=method, budget=0.8, out=tmp_path / "by hand").quantized
    config = mp.IPMSEConfig(strategy=method, budget=0.8)
    assert patched(quantize(model, config, run_fn=keyword)) == set(planned)


@pytest.mark.parametrize("method", helpers.mostly_slow(["maxabs_arbitrary", "maxabs_pow2"], "maxabs_pow2"))
def test_measured_noise_takes_the_scales_of_the_configuration(method):
    model = helpers.language_model("llama")
    batches = [{"input_ids": ids} for ids in INPUTS]
    graph = mp.capture(model, batches[0])
    scales = mp.Scales(method, "cpu")
    seen = mp.measure_sensitivity(
        model, graph, batches, yardstick="both", scales=scales, formats=("fp8_e4m3",)
    )
    losses = mp.LossModel(seen, "measured")
    plan = mp.solve(mp.memory_gains(graph, ("fp32", "fp8_e4m3")), losses, tau=TAU, confidence=0.9)
    assert plan.binds
    config = mp.IPMSEConfig(tau=TAU, noise="measured", confidence=0.9, scale_method=method)
    assert patched(quantize(model, config, run_fn=keyword)) == set(plan.quantized)


@pytest.mark.parametrize(("room", "kept"), [(3 * 8 * 4 * 5, 3), (8 * 4 * 5, 1), (0, 1)])
def test_batches_are_kept_as_long_as_there_is_room(room, kept):
    """Of 4 rows of 5 numbers of 8 bytes; the first is kept in any case, or there would be no gradient."""
    model = nn.Linear(5, 2).double()
    recorder = BatchRecorder(100, room)
    recorder.watch(model)
    given = [torch.full((4, 5), float(i), dtype=torch.float64) for i in range(6)]
    for batch in given:
        model(batch)
        batch.zero_()  # what is kept is a copy
    recorder.stop(model)
    assert [batch["input"].unique().tolist() for batch in recorder.batches] == [
        [float(i)] for i in range(kept)
    ]


def test_hooks_of_the_users_own_stay():
    seen = []
    model = helpers.language_model("llama")
    planned = expected(model, tau=TAU)
    handle = model.register_forward_pre_hook(lambda *_: seen.append(1))
    converted = quantize(model, mp.IPMSEConfig(tau=TAU), run_fn=keyword)
    assert patched(converted) == planned
    assert list(converted._forward_pre_hooks) == [handle.id]
    seen.clear()
    converted(INPUTS[0])
    assert seen == [1]


def test_the_users_lists_are_respected():
    blocklist = {"names": ["mlp"], "types": []}
    config = mp.IPMSEConfig(tau=1.0, blocklist=copy.deepcopy(blocklist))
    model = helpers.language_model("llama")
    linear = {name for name, module in model.named_modules() if type(module) is nn.Linear}
    result = quantize(model, config, run_fn=keyword)
    assert patched(result) == {name for name in linear if "mlp" not in name}
    assert config.blocklist == blocklist


def test_a_json_file(tmp_path):
    content = {"mode": "AUTO", "strategy": "ip_mse", "ip_mse": {"tau": TAU}}
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**content, "dump_stats_path": "./stats/measure"}))
    model = helpers.language_model("llama")
    planned = expected(model, tau=TAU)
    result = quantize(model, FP8Config.from_json_file(str(path)), run_fn=keyword)
    assert patched(result) == planned
    assert (tmp_path / "stats" / "ip_mse" / "measure" / "plan.json").exists()


def test_incs_own_fp8_still_works():
    config = FP8Config(use_qdq=True, scale_method="maxabs_arbitrary")
    prepared = prepare(helpers.language_model("llama"), config)
    keyword(prepared)
    assert len(patched(convert(prepared))) == 15


def test_an_encoder_with_its_own_loss():
    batch = {"input_ids": INPUTS[0], "labels": torch.tensor([0, 2])}
    config = mp.IPMSEConfig(tau=1.0, loss_fn=helpers.classification_loss)
    result = quantize(helpers.encoder(), config, run_fn=lambda m: m(**batch))
    assert "classifier" in patched(result)


def test_a_module_that_calibration_never_ran_stays_callable():
    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.always, self.rarely = nn.Linear(8, 8), nn.Linear(8, 8)
            self.rare = False

        def forward(self, x):
            x = self.always(x)
            return self.rarely(x) if self.rare else x

    config = mp.IPMSEConfig(tau=1.0, loss_fn=lambda m, b: helpers.squared_loss(m, b["x"]))
    result = quantize(Sometimes().eval(), config, run_fn=lambda m: m(torch.randn(4, 8)))
    assert patched(result) == {"always"}
    result.rare = True
    result(torch.randn(4, 8))


def test_errors():
    with pytest.raises(InputError, match="unknown IPMSEConfig key 'tua'; did you mean 'tau'"):
        mp.IPMSEConfig(tua=0.1)
    with pytest.raises(InputError, match="unknown ip_mse key 'taw'"):
        mp.IPMSEConfig(ip_mse={"taw": 0.1})
    wrong_ones = (
        {"tau": float("nan")},
        {"tau": -1},
        {"objective": "speed"},
        {"device": "tpu"},
        {"noise": "loud"},
        {"confidence": 95},
        {"budget": 0},
        {"budget": 0.5, "gain_fraction": 0.5},
        {"strategy": "egal"},
    )
    for wrong in wrong_ones:
        with pytest.raises(InputError):
            mp.IPMSEConfig(**wrong)
    model = helpers.language_model("llama")
    with pytest.raises(InputError, match="needs run_fn"):
        quantize(model, mp.IPMSEConfig(tau=TAU))
    with pytest.raises(InputError, match="did not call the model"):
        quantize(model, mp.IPMSEConfig(tau=TAU), run_fn=lambda _: None)
    with pytest.raises(InputError, match="the model that prepare returned"):
        convert(helpers.language_model("llama"), mp.IPMSEConfig(tau=TAU))
    with pytest.raises(InputError, match="give loss_fn"):
        quantize(
            helpers.ResidualCNN(),
            mp.IPMSEConfig(tau=TAU),
            run_fn=lambda m: m(torch.randn(2, 3, 8, 8)),
        )


def test_the_key_of_0_1_0_for_the_strategy(caplog):
    with caplog.at_level("WARNING", logger="inc_mp_plugin"):
        old = mp.IPMSEConfig(values="eagl", budget=0.8)
        several = mp.IPMSEConfig(values=[None, "eagl"], budget=0.8)
    assert 'is now called "strategy"' in caplog.text
    assert old == mp.IPMSEConfig(strategy="eagl", budget=0.8)
    assert several.ours["strategy"] == ["ip_mse", "eagl"]
    assert mp.IPMSEConfig(strategy="ip_mse", budget=0.8) == mp.IPMSEConfig(budget=0.8)


def test_thresholds_decide_the_order_of_what_autotune_tries():
    config = mp.IPMSEConfig(objective=["memory", "theoretical_time"], tau=[0.01, 0.1])
    assert [each.ours["tau"] for each in config.expand()] == [0.1, 0.1, 0.01, 0.01]


@pytest.mark.parametrize("strategy", ["EAGL", "ip-mse"])
def test_another_spelling_of_a_strategy_quantizes_nothing(strategy):
    model = helpers.language_model("llama")
    with pytest.raises(InputError, match=f"unknown strategy '{strategy}'"):
        quantize(model, FP8Config(strategy=strategy), run_fn=keyword)
    assert not patched(model)


def test_a_strategy_of_ours_in_incs_own_configuration():
    planned = patched(
        quantize(helpers.language_model("llama"), mp.IPMSEConfig(strategy="eagl", budget=0.8), run_fn=keyword)
    )
    flat = FP8Config(strategy="eagl", budget=0.8)
    assert patched(quantize(helpers.language_model("llama"), flat, run_fn=keyword)) == planned
