"""Zeros and numbers next to zero, which INC has no scale for: from the plan to finite logits."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import helpers
import numpy as np
import pytest
import torch
from neural_compressor.torch.quantization import FP8Config, convert, finalize_calibration, prepare

import inc_mp_plugin as mp
from inc_mp_plugin.core.errors import NonFiniteError
from inc_mp_plugin.inc.check.measurements import unmeasured
from inc_mp_plugin.inc.config import config_of, measure_config
from inc_mp_plugin.inc.selection import selected
from inc_mp_plugin.model.subject import Subject
from inc_mp_plugin.pipeline.recipe import Recipe
from inc_mp_plugin.pipeline.resolve import job_of
from inc_mp_plugin.stages.loss_meter import LossMeter
from inc_mp_plugin.targets import CPU_QDQ
from inc_mp_plugin.targets.layout import Captured

LAYER = "model.layers.1"
MLP = f"{LAYER}.mlp"


def zeroed(*names, size=0.0):
    """A Llama with these weights scaled to a size."""
    model = helpers.language_model("llama")
    with torch.no_grad():
        for name in names:
            weight = model.get_submodule(name).weight
            weight.mul_(size / weight.abs().max())
    return model


def unheard():
    """A Llama whose second layer's norm gives the projections of its MLP nothing but zeros."""
    model = helpers.language_model("llama")
    torch.nn.init.zeros_(model.model.layers[1].post_attention_layernorm.weight)
    return model


CASES = {
    "down_proj": (lambda: zeroed(f"{MLP}.down_proj"), {f"{MLP}.down_proj": "weight"}),
    "gate_proj": (
        lambda: zeroed(f"{MLP}.gate_proj"),
        {f"{MLP}.gate_proj": "weight", f"{MLP}.down_proj": "input"},
    ),
    "subnormal": (lambda: zeroed(f"{MLP}.down_proj", size=1e-40), {f"{MLP}.down_proj": "weight"}),
    "zero input": (
        unheard,
        {f"{MLP}.{name}_proj": "input" for name in ("gate", "up", "down")},
    ),
}


def batches(count=2):
    return [{"input_ids": helpers.tokens(3, seed=seed)} for seed in range(count)]


def patched(model):
    return {n for n, m in model.named_modules() if type(m).__name__.startswith("Patched")}


@pytest.mark.parametrize("case", CASES)
def test_from_plan_to_finite_logits(case, tmp_path, caplog):
    caplog.set_level(logging.INFO, "inc_mp_plugin")
    make, held = CASES[case]
    model = make()
    plan = mp.tune(model, batches(), tau=10.0, targets=["cpu-qdq", "vllm-gaudi"], out=tmp_path)
    linear = {op for op in plan.formats if "matmul" not in op}
    stored = json.loads((tmp_path / "plan.json").read_text())["held_back"]
    assert held.keys() <= stored.keys()
    for op, what in held.items():
        assert stored[op].startswith(f"INC has no scale for {'an' if what == 'input' else 'a'} {what}")
    assert "INC has no scale for" in caplog.text
    # on vLLM gate_proj and up_proj are one module: what holds one back holds the other
    both = {f"{MLP}.gate_proj", f"{MLP}.up_proj"}
    alone = set(held) | (both if both & held.keys() else set())
    assert set(plan.quantized) == linear - alone
    graph = mp.capture(model, batches()[0])
    config = mp.to_inc_config(plan, "cpu-qdq", graph)
    assert not set(held) & set(selected(graph.modules, config, "cpu"))
    text = json.dumps(mp.to_inc_config(plan, "vllm-gaudi", graph))
    assert "layers" in text
    expected = model(**batches()[0]).logits
    logits = mp.apply(model, plan, batches())(**batches()[0]).logits
    assert logits.isfinite().all()
    assert torch.nn.functional.cosine_similarity(logits.flatten(), expected.flatten(), dim=0) > 0.98


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("case", ["down_proj", pytest.param("zero input", marks=pytest.mark.slow)])
def test_in_scripts_of_inc(case, processes, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "inc_mp_plugin")
    monkeypatch.chdir(tmp_path)  # INC writes its measurements to ./hqt_output
    mp.register()
    make, held = CASES[case]
    model = prepare(make(), mp.IPMSEConfig(tau=10.0))
    with torch.no_grad():
        for batch in batches():
            model(**batch)
    if processes == 2:
        finalize_calibration(model)
        model = make()
        converted = convert(model, mp.IPMSEConfig(tau=10.0))
    else:
        converted = convert(model)
    assert not held.keys() & patched(converted)
    assert f"{LAYER}.self_attn.q_proj" in patched(converted)
    assert converted(**batches()[0]).logits.isfinite().all()
    assert "INC has no scale for" in caplog.text


def test_a_channel_of_zeros_is_no_reason_under_one_scale_per_weight():
    model = helpers.language_model("llama")
    model.model.layers[0].self_attn.q_proj.weight.data[3] = 0.0
    graph = mp.capture(model, batches()[0])
    seen = mp.measure_sensitivity(model, graph, batches())
    plan = mp.solve(mp.memory_gains(graph, ("fp32", "fp8_e4m3")), seen, tau=10.0)
    assert "model.layers.0.self_attn.q_proj" in plan.quantized
    assert mp.apply(model, plan, batches())(**batches()[0]).logits.isfinite().all()


def test_experts_that_were_never_hit(tmp_path):
    model, batch = helpers.language_model("mixtral"), [{"input_ids": helpers.tokens(1, length=2)}]
    plan = mp.tune(model, batch, tau=10.0, out=tmp_path)
    assert json.loads((tmp_path / "sensitivity.json").read_text())["not_reached"]
    converted = mp.apply(model, plan, batch)
    assert converted(**batch[0]).logits.isfinite().all()
    assert converted(**batches()[0]).logits.isfinite().all()  # which reaches all experts


def everything(graph):
    """A plan that lowers every linear op, whatever INC makes of it."""
    model = helpers.language_model("llama")
    seen = mp.measure_sensitivity(model, graph, batches(1))
    return mp.solve(mp.memory_gains(graph, ("fp32", "fp8_e4m3")), seen, tau=10.0)


def test_apply_names_the_first_op_that_breaks():
    """The plan is of the model before its weights were lost: what INC converts is not finite."""
    model = zeroed(f"{LAYER}.self_attn.v_proj", f"{MLP}.down_proj")
    plan = everything(mp.capture(model, batches()[0]))
    shuffled = replace(plan, formats=dict(reversed(plan.formats.items())))
    with pytest.raises(NonFiniteError, match=rf"op '{LAYER}.self_attn.v_proj' makes NaN or infinity") as told:
        mp.apply(model, shuffled, batches())
    assert told.value.exit_code == NonFiniteError.exit_code == 1


def test_convert_names_the_op_that_breaks(tmp_path, monkeypatch):
    """What INC measured of an input is no number, though the sensitivities are."""
    monkeypatch.chdir(tmp_path)
    mp.register()
    model = prepare(helpers.language_model("llama"), mp.IPMSEConfig(tau=10.0))
    with torch.no_grad():
        model(**batches()[0])
    # as INC measures an overflow
    name = f"{MLP}.up_proj"
    vars(model.get_submodule(name))["_mod_extra_config"].inputs[0].state.fill_(torch.nan)
    with pytest.raises(NonFiniteError, match=f"op '{name}' makes NaN or infinity"):
        convert(model)


def test_a_measured_loss_names_the_op_that_breaks(tmp_path):
    model = zeroed(f"{MLP}.down_proj")
    graph = mp.capture(model, batches()[0])
    seen = replace(mp.measure_sensitivity(model, graph, batches()), maxabs={})
    recipe = {"model": {"name_or_path": "none", "dtype": "fp32"}, "tau": 1.0}
    data = {"data": str(tmp_path / "none.jsonl"), "samples": 2, "sequence_length": 12}
    (tmp_path / "none.jsonl").write_text('{"text": "none"}\n')
    (tmp_path / "heldout.jsonl").write_text('{"text": "other"}\n')
    held_out = {"data": str(tmp_path / "heldout.jsonl"), "through": "inc"}
    whole = Recipe(**recipe, calibration=data, validation=held_out)
    subject, job = Subject({"model": "none"}, "fp32", lambda: model, batches), job_of(whole)
    meter = LossMeter(job, job.heldout, subject, graph, ops=seen.ops, out=tmp_path)
    vars(meter)["heldout"] = batches()
    fine = meter.losses([f"{MLP}.up_proj"])
    assert np.isfinite(fine).all()
    with pytest.raises(NonFiniteError, match=f"with 2 ops in fp8_e4m3: op '{MLP}.down_proj' is the first"):
        meter.losses([f"{LAYER}.self_attn.q_proj", f"{MLP}.down_proj"])


def test_a_check_flags_what_inc_measured_to_be_zeros(tmp_path, monkeypatch):
    """On INC's own measurement, of a weight of zeros and of the input of zeros that comes of another."""
    monkeypatch.chdir(tmp_path)
    lost = [f"{MLP}.down_proj", "model.layers.0.mlp.gate_proj", "model.layers.0.mlp.down_proj"]
    model = zeroed(*lost[:2])
    modules = {n: type(m).__name__ for n, m in model.named_modules() if n}
    linear = tuple(n for n, kind in modules.items() if kind == "Linear")
    captured = Captured(linear, modules)
    config = config_of("fp32", dict.fromkeys(linear, "fp8_e4m3"), CPU_QDQ, captured)
    config["dump_stats_path"] = "./measured/measure"
    Path("measure.json").write_text(json.dumps(measure_config(config, CPU_QDQ)))
    model = prepare(model, FP8Config.from_json_file("measure.json"))
    with torch.no_grad():
        model(**batches()[0])
    finalize_calibration(model)
    layout, measurements = CPU_QDQ.lay_out(captured, mp.Serving()), Path("measured/measure_hooks_maxabs.json")
    (fault,) = unmeasured(config, layout, "cpu", measurements)
    assert fault.startswith("3 modules are selected whose largest value")
    kept = dict.fromkeys(linear, "fp8_e4m3") | dict.fromkeys(lost, "fp32")
    assert not unmeasured(config_of("fp32", kept, CPU_QDQ, captured), layout, "cpu", measurements)
