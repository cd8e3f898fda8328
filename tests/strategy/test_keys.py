"""Keys of a recipe in INC's configurations: as one value, as several, in JSON, and through a whole flow."""

import json

import helpers
import pytest
import torch
from calibration import INPUTS, calibrate, patched
from neural_compressor.torch.quantization import (
    FP8Config,
    TuningConfig,
    autotune,
    convert,
    prepare,
    quantize,
)
from torch import nn

import inc_mp_plugin as mp
from inc_mp_plugin.core.timings import TimedConfiguration, Timing
from inc_mp_plugin.gain.devices import CPU
from inc_mp_plugin.stages import stopwatch
from inc_mp_plugin.stages.plan import PLAN
from inc_mp_plugin.strategy import choices
from inc_mp_plugin.strategy.lists import LiveModel
from inc_mp_plugin.strategy.settings import Settings, split

pytestmark = pytest.mark.usefixtures("registered")

TAU = 0.0005
HELDOUT = [{"input_ids": helpers.tokens(8, 16, seed)} for seed in (10, 11)]
VERIFIED = {"tau": TAU, "verify": True, "validation": {"data": HELDOUT, "random_plans": 3}}
FOLDER = "hqt_output/ip_mse/measure"


def never(model):
    del model
    message = "a wrong setting is to be refused before calibration"
    raise AssertionError(message)


def plan_of(folder):
    content = json.loads((folder / FOLDER / "plan.json").read_text())
    return content, {op for op, name in content["formats"].items() if name != content["base"]}


def by_dict(model):
    return quantize(model, {"ip_mse": VERIFIED}, run_fn=calibrate)


def in_two_steps(model):
    prepared = prepare(model, mp.IPMSEConfig(**VERIFIED))
    calibrate(prepared)
    return convert(prepared, inplace=False)


@pytest.mark.parametrize("flow", helpers.mostly_slow([by_dict, in_two_steps], in_two_steps))
def test_a_closed_loop_within_incs_flow(flow, tmp_path):
    """Its plans are measured by INC while INC converts; the model is converted as if nothing had been."""
    converted = flow(helpers.language_model("llama"))
    plan, lowered = plan_of(tmp_path)
    loop = json.loads((tmp_path / FOLDER / "verification.json").read_text())
    assert plan["correction"] == loop["rounds"][loop["chosen"]]["correction"]
    assert patched(converted) == lowered != set()
    batches = [{"input_ids": ids} for ids in INPUTS]
    applied = mp.apply(helpers.language_model("llama"), PLAN.read(tmp_path / FOLDER), batches)
    assert torch.equal(converted(INPUTS[0]).logits, applied(INPUTS[0]).logits)


def test_after_an_error_of_the_loop_the_model_is_as_it_came():
    model = helpers.mixture("mixtral")
    before = helpers.state(model)
    seen = {
        **VERIFIED,
        "objective": "bit_operations",
        "validation": [{"input_ids": ids} for ids in INPUTS] * 3,
    }
    with pytest.raises(mp.InputError, match="validation, sample 1: it is a calibration sample"):
        quantize(model, mp.IPMSEConfig(**seen), run_fn=calibrate)
    helpers.assert_same_state(before, helpers.state(model))


def test_a_baseline_in_incs_own_configuration():
    ours = mp.IPMSEConfig(strategy="random", seed=3, tau=TAU)
    planned = patched(quantize(helpers.language_model("llama"), ours, run_fn=calibrate))
    theirs = FP8Config(strategy="random", ip_mse={"strategy": "random", "seed": 3, "tau": TAU})
    assert patched(quantize(helpers.language_model("llama"), theirs, run_fn=calibrate)) == planned != set()
    other = mp.IPMSEConfig(strategy="random", seed=4, tau=TAU)
    assert patched(quantize(helpers.language_model("llama"), other, run_fn=calibrate)) != planned


def test_keys_of_a_json_file(tmp_path):
    """A request is a mapping there, and targets are a list."""
    ours = {"tau": 0.01, "objective": "roofline", "device": "h100", "targets": ["vllm-gaudi"]}
    ours["request"] = {"prompt_tokens": 16}
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"mode": "AUTO", "ip_mse": ours}))
    result = quantize(helpers.language_model("llama"), FP8Config.from_json_file(str(path)), run_fn=calibrate)
    plan, lowered = plan_of(tmp_path)
    assert patched(result) == lowered != set()
    assert (plan["objective"], plan["targets"]) == ("roofline", ["cpu-qdq", "vllm-gaudi"])
    recipe = json.loads((tmp_path / FOLDER / "recipe.json").read_text())
    assert recipe["request"] == {"prompt_tokens": 16, "output_tokens": 0, "batch_size": 1}


def values(config, key):
    return [each.ours.get(key) for each in config.expand()]


def test_what_is_one_value_and_what_several():
    targets = ["vllm-gaudi", "optimum-habana"]
    assert values(mp.IPMSEConfig(targets=targets), "targets") == [targets]
    assert values(mp.IPMSEConfig(targets=[targets, []]), "targets") == [targets, []]
    requests = [{"prompt_tokens": 8}, {"prompt_tokens": 9}, {"prompt_tokens": 8}]
    several = mp.IPMSEConfig(objective="roofline", device="h100", request=requests)
    assert values(several, "request") == requests[:2]
    batches = mp.IPMSEConfig(tau=[0.1, 0.2], validation=HELDOUT).expand()
    assert len(batches) == 2
    assert batches[0].ours["validation"] is batches[1].ours["validation"]


def test_configurations_with_batches_can_be_compared():
    config = mp.IPMSEConfig(tau=0.1, validation=HELDOUT)
    assert config == config.expand()[0]
    assert config != mp.IPMSEConfig(tau=0.1, validation=HELDOUT)
    assert config != mp.IPMSEConfig(tau=0.1)


def test_batches_that_can_be_read_once_serve_every_trial(tmp_path):
    loader = (batch for batch in HELDOUT)
    config = mp.IPMSEConfig(tau=[TAU, 0.0001], verify=True, validation={"data": loader, "random_plans": 3})
    tries = TuningConfig(config_set=config, tolerable_loss=0.01, max_trials=2)
    scores = iter([100.0, 1.0, 100.0])
    best = autotune(helpers.language_model("llama"), tries, lambda _: next(scores), run_fn=calibrate)
    plan, lowered = plan_of(tmp_path)
    assert plan["tau"] == 0.0001
    assert patched(best) == lowered


def test_time_that_a_cpu_cannot_measure_is_refused_before_calibration():
    for keys in ({"objective": "empirical_time"}, {"timing": {"repeats": 4}}):
        with pytest.raises(mp.InputError, match="on a CPU, which only emulates FP8; give timing="):
            quantize(helpers.language_model("llama"), mp.IPMSEConfig(**keys), run_fn=never)
    with pytest.raises(mp.InputError, match="habana_frameworks is not installed"):
        quantize(helpers.language_model("llama"), mp.IPMSEConfig(timing={"device": "hpu"}), run_fn=never)
    with pytest.raises(mp.InputError, match="no peak is known for fp32 on gaudi2"):
        roofline = mp.IPMSEConfig(objective="roofline", request={"prompt_tokens": 8})
        quantize(helpers.language_model("llama"), roofline, run_fn=never)


def test_scales_that_losses_cannot_be_measured_with_are_refused_before_calibration():
    config = mp.IPMSEConfig(validation=HELDOUT, scale_method="unit_scale")
    with pytest.raises(mp.InputError, match="unknown scale_method of target cpu-qdq 'unit_scale'"):
        quantize(helpers.language_model("llama"), config, run_fn=never)


def test_measured_time_of_a_gaudi(monkeypatch, tmp_path):
    """A stand-in for the clock: INC would change the timed model for good, so it is a copy."""
    timed = []

    def measure(self, configurations, _):
        timed.append(self.model)
        rows = [
            TimedConfiguration(c.formats, 0.01 * len(c.formats), 1e-6, (3,), (1.0,), (0.9,))
            for c in configurations
        ]
        return Timing("hpu", "a stand-in", {"ttft": 1}, (1.0,), tuple(rows))

    for place in ("gains", "timing", "stopwatch"):
        monkeypatch.setattr(f"inc_mp_plugin.stages.{place}.get_device", lambda _: CPU())
    monkeypatch.setattr(stopwatch.Stopwatch, "measure", measure)
    model = helpers.language_model("llama")
    config = mp.IPMSEConfig(tau=TAU, objective="empirical_time", timing={"device": "hpu"})
    converted = quantize(model, config, run_fn=calibrate)
    plan, lowered = plan_of(tmp_path)
    assert (plan["objective"], plan["source"]) == ("empirical_time", "measured")
    assert patched(converted) == lowered != set()
    assert plan["predicted"]["gain"] == pytest.approx(0.01 * len(lowered))
    assert [each is model for each in timed] == [False]


class KVCache(nn.Module):
    """Named as optimum-habana's, which INC knows on a Gaudi."""


class Cached(nn.Module):
    """Two caches and a layer."""

    def __init__(self):
        super().__init__()
        self.k_cache, self.v_cache, self.layer = KVCache(), KVCache(), nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("lists", "keys", "cache"),
    [
        ({}, {}, "fp8"),
        ({}, {"kv_cache": "fp8"}, "fp8"),
        ({}, {"kv_cache": "bf16"}, "bf16"),
        ({}, {"verify": True}, "bf16"),
        ({"names": ["_cache"]}, {}, "bf16"),
        ({"names": ["_cache"]}, {"kv_cache": "fp8"}, "kv_cache is fp8, but your lists keep k_cache out"),
    ],
)
def test_the_format_of_the_cache_on_a_gaudi(monkeypatch, lists, keys, cache):
    monkeypatch.setattr(choices, "is_cpu", lambda: False)
    settings = Settings.of(split(keys)[0])
    if "lists" in cache:
        with pytest.raises(mp.InputError, match=cache):
            LiveModel.of(Cached(), {"blocklist": lists}, settings)
        return
    assert LiveModel.of(Cached(), {"blocklist": lists}, settings).serving.kv_cache == cache
