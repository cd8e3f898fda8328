"""Keys of a recipe in Python: what they do for a model in memory, and the line for each wrong value."""

import helpers
import pytest
import torch
from helpers import call, read

import inc_mp_plugin as mp
from inc_mp_plugin.model.losses import sample_losses
from inc_mp_plugin.pipeline import in_memory
from inc_mp_plugin.pipeline.recipe import parse_recipe
from inc_mp_plugin.pipeline.resolve import job_of

BATCHES = [{"input_ids": helpers.tokens(2, 16, seed)} for seed in range(3)]
HELDOUT = [{"input_ids": helpers.tokens(6, 16, seed)} for seed in (10, 11, 12, 13)]
TAU = 0.0005


@pytest.fixture(scope="module")
def model():
    return helpers.language_model("llama")


@pytest.fixture(scope="module")
def verified(model, tmp_path_factory):
    """A folder with a closed loop in memory, its plan, and the model's state before and after."""
    out, before = tmp_path_factory.mktemp("verified"), helpers.state(model)
    keys = {"tau": TAU, "verify": True, "verify_confidence": 0.9}
    validation = {"data": (batch for batch in HELDOUT), "random_plans": 3, "seed": 4}
    plan = mp.tune(model, BATCHES, **keys, validation=validation, out=out)
    return out, plan, before, helpers.state(model)


def test_a_closed_loop_leaves_the_model_as_it_came(verified):
    _, _, before, after = verified
    helpers.assert_same_state(before, after)


def test_a_closed_loop_chooses_a_plan_that_holds(verified):
    out, plan, *_ = verified
    loop = read(out, "verification.json")
    chosen = loop["rounds"][loop["chosen"]]
    assert (loop["samples"], loop["verify_confidence"]) == (12, 0.9)
    assert chosen["interval"][1] <= TAU
    assert plan.correction == chosen["correction"]
    assert read(out, "recipe.json")["validation"]["samples"] == 12


def test_what_is_reported_is_what_inc_makes(verified):
    """Of the first half of the samples, in a model that INC converts as planned."""
    out, plan, *_ = verified
    report, first = read(out, "validation.json"), HELDOUT[:2]

    def losses(model):
        with torch.no_grad():
            return torch.cat([sample_losses(model, batch, None) for batch in first]).double()

    base = losses(helpers.language_model("llama"))
    changed = losses(mp.apply(helpers.language_model("llama"), plan, BATCHES))
    nrmse = ((changed - base).square().mean() / base.square().mean()).sqrt()
    assert report["nrmse"] == pytest.approx(float(nrmse), rel=1e-3)
    assert (report["samples"], len(report["points"])) == (12, 3)


def test_a_second_call_reuses_what_was_measured(model, verified, caplog):
    out, plan, *_ = verified
    caplog.set_level("INFO", "inc_mp_plugin")
    keys = {"tau": TAU, "verify": True, "verify_confidence": 0.9}
    again = mp.tune(
        model, BATCHES, **keys, validation={"data": HELDOUT, "random_plans": 3, "seed": 4}, out=out
    )
    assert again.formats == plan.formats
    assert "verification.json: still valid, reused" in caplog.messages
    assert "validation.json: still valid, reused" in caplog.messages


def test_commands_take_the_folder(verified):
    out, *_ = verified
    assert call("report", out).exit_code == 0
    page = (out / "report.html").read_text()
    assert "inc-mp validate" not in page
    assert "Predicted against measured" in page
    result = call("solve", out, "tau=0.001")
    assert "`mp.tune` with the same keys measures and corrects it" in helpers.told(result)
    assert call("solve", out).exit_code == 0


def test_the_report_says_how_to_measure_in_python(model, tmp_path):
    mp.tune(model, BATCHES, tau=TAU, out=tmp_path)
    assert call("report", tmp_path).exit_code == 0
    assert "validation=heldout, verify=True" in (tmp_path / "report.html").read_text()


def test_a_model_with_experts_and_products_is_measured_in_a_copy(tmp_path):
    model = helpers.mixture("mixtral")
    before = helpers.state(model)
    mp.tune(model, BATCHES, tau=0.1, objective="bit_operations", validation=HELDOUT, out=tmp_path)
    helpers.assert_same_state(before, helpers.state(model))
    report = read(tmp_path, "validation.json")
    assert any("matmul" in op for op in report["plan"]["quantized"])
    assert any(".experts." in op for op in report["plan"]["quantized"])
    assert report["plan"]["measured"] > 0


def test_a_model_that_cannot_be_copied_is_one_line(tmp_path):
    model = helpers.language_model("llama")
    model.result = model.lm_head.weight * 2  # has a graph of gradients
    with pytest.raises(mp.InputError, match="in a copy of the model, which cannot be copied: Only Tensors"):
        mp.tune(model, BATCHES, tau=TAU, validation=HELDOUT, out=tmp_path)


def test_noise_and_values_round_as_the_first_target_does(tmp_path):
    """As a recipe does; a CPU's scales would be others."""
    model = helpers.language_model("llama").bfloat16()
    given = {"tau": TAU, "noise": "measured", "device": "gaudi3"}
    plan = mp.tune(model, BATCHES, **given, targets=["vllm-gaudi"], out=tmp_path / "target")
    graph = mp.capture(model, BATCHES[0])
    gains, held = mp.memory_gains(graph), mp.demands(graph, ["vllm-gaudi"])
    predicted = []
    for scales in (mp.Scales("maxabs_hw", "gaudi3"), mp.Scales("maxabs_arbitrary", "cpu")):
        seen = mp.measure_sensitivity(
            model, graph, BATCHES, yardstick="both", scales=scales, formats=("fp8_e4m3",)
        )
        predicted.append(mp.solve(gains, mp.LossModel(seen, "measured"), TAU, demands=held).loss_mse)
    assert plan.loss_mse == predicted[0] != predicted[1]


CONTENT = {"model": {"name_or_path": "x", "dtype": "fp32"}, "calibration": {"data": "x.jsonl"}}


def test_timing_is_a_mapping_or_a_value():
    keys = {"tau": 0.1, "formats": ["bf16"], "objective": "empirical_time"}
    settings = {"repeats": 4, "most_repeats": 5, "precision": 0.1, "budget_s": 2.0, "every_group": True}
    recipe = parse_recipe({**CONTENT, **keys, "timing": settings, "targets": []}, [], "recipe")
    jobs = []
    for timing in (settings, mp.TimingSettings(**settings)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(in_memory, "in_all_processes", lambda job, *_: jobs.append(job))
            mp.tune(helpers.language_model("llama"), BATCHES, **keys, timing=timing, out="unused")
    assert [job.timing for job in jobs] == [job_of(recipe).timing] * 2


WRONG = [
    ({"objective": "speed"}, "objective is 'speed': input should be 'memory'"),
    ({"strategy": "fastest"}, "strategy is 'fastest': input should be 'ip_mse'"),
    ({"strategy": "random", "tau": None, "gain_fraction": 0.5}, "held to a threshold: give kl or tau"),
    ({"strategy": "prefix", "confidence": 0.9}, "goes with no other strategy"),
    ({"seed": 0.5}, "seed is 0.5: input should be a valid integer"),
    ({"request": 5}, "request is 5: it must hold keys of prompt_tokens, output_tokens, batch_size"),
    (
        {"request": {"prompt_tokens": 5, "output": 5}},
        "unknown key 'request.output'; did you mean 'output_tokens'",
    ),
    ({"request": {"prompt_tokens": 1}}, "request.prompt_tokens is 1: input should be greater than 1"),
    ({"timing": {"device": "tpu"}}, "timing.device is 'tpu': input should be 'cpu', 'cuda' or 'hpu'"),
    ({"timing": {"repeats": 2}}, "timing.repeats is 2: input should be greater than or equal to 3"),
    ({"verify": True}, "verify measures ip_mse plans on held-out samples; give kl or tau, and validation"),
    ({"verify": "maybe"}, "verify is 'maybe'[;:] it must be [tT]rue or [fF]alse"),
    ({"verify_confidence": 95}, "verify_confidence is 95: input should be less than 1"),
    ({"reuse_cache": "maybe"}, "reuse_cache is 'maybe'[;:] it must be [tT]rue or [fF]alse"),
    ({"targets": ["tpu"]}, "targets: unknown target 'tpu'; known: cpu-bf16"),
    ({"targets": "vllm-gaudi"}, r"targets is 'vllm-gaudi': it must be a list, such as \[vllm-gaudi\]"),
    ({"targets": ["cpu-bf16"]}, "target cpu-bf16 runs bf16, fp16 beside fp32, not fp8_e4m3"),
    ({"kv_cache": "fp9"}, "kv_cache is 'fp9': input should be 'bf16' or 'fp8'|unknown kv_cache 'fp9'"),
    ({"kv_cache": "fp8"}, "kv_cache: fp8 is of Gaudi; add a target with such a cache"),
    (
        {"attention": "slow"},
        "attention is 'slow': input should be 'eager' or 'flash'|unknown attention 'slow'",
    ),
]
OF_PYTHON = [
    ({"objective": "roofline"}, "objective roofline needs a request; give one, such as request="),
    ({"validation": "held.jsonl"}, "validation: batches is one str; give an iterable of batches"),
    ({"validation": HELDOUT[0]}, "validation holds the key 'input_ids'; it must be held-out batches"),
    ({"validation": {"seed": 1}}, "validation has no data; it must be held-out batches"),
    ({"validation": []}, "validation holds no batch; give at least one"),
    ({"validation": {"data": HELDOUT, "samples": 3}}, "validation holds the key 'samples'"),
    ({"validation": {"data": HELDOUT, "random_plans": 2}}, "validation.random_plans is 2: input should be"),
    ({"validation": {"data": HELDOUT, "through": "vllm"}}, "validation.through is 'vllm'"),
    ({"verify": True, "validation": HELDOUT[:2]}, "validation holds 12 samples; verify needs at least 16"),
    ({"verify_confidence": "0.9"}, "verify_confidence is '0.9'; it must be a number, such as 0.95"),
    (
        {"verify": True, "validation": HELDOUT, "targets": ["vllm-gaudi"], "kv_cache": "fp8"},
        "there is no KV cache: kv_cache: fp8 would go unmeasured",
    ),
]


def by_recipe(keys, _):
    parse_recipe({**CONTENT, "tau": 0.1, **keys}, [], "recipe")


def by_tune(keys, folder):
    mp.tune(helpers.language_model("llama"), BATCHES, **{"tau": 0.1, **keys}, out=folder)


def by_config(keys, _):
    mp.IPMSEConfig(**{"tau": 0.1, **keys})


@pytest.mark.parametrize(
    ("face", "given", "text"),
    [
        *((face, *case) for case in WRONG for face in (by_recipe, by_tune, by_config)),
        *((face, *case) for case in OF_PYTHON for face in (by_tune, by_config)),
    ],
)
def test_a_wrong_value_is_one_line_in_every_face(face, given, text, tmp_path):
    with pytest.raises(mp.InputError, match=text) as error:
        face(given, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"scale_method": "maxabs"}, "unknown scale_method of target cpu-qdq 'maxabs'; did you mean"),
        (
            {"scale_method": "maxabs_hw", "targets": ["vllm-gaudi", "cpu-qdq"]},
            "unknown scale_method of target cpu-qdq 'maxabs_hw'",
        ),
        (
            {"scale_method": "maxabs_pow2", "scales": mp.Scales("maxabs_pow2", "cpu")},
            "scales and scale_method 'maxabs_pow2' say the same thing twice; give one",
        ),
        (
            {"scales": mp.Scales("unit_scale", "cpu"), "validation": HELDOUT},
            "unknown scale_method of target cpu-qdq 'unit_scale'",
        ),
        ({"objective": "theoretical_time"}, "no peak is known for fp32 on gaudi2"),
        ({"objective": "empirical_time"}, "a CPU only emulates fp8_e4m3"),
        ({"timing": mp.TimingSettings(device="hpu")}, "habana_frameworks is not installed"),
        ({"validation": BATCHES}, "validation, sample 1: it is a calibration sample; held-out"),
    ],
)
def test_what_is_wrong_in_memory_is_said_at_once(given, text, tmp_path):
    with pytest.raises(mp.InputError, match=text) as error:
        by_tune(given, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
