"""Measuring a real model on this CPU: what comes out, what stays as it was, what is refused."""

import copy

import helpers
import pytest
import torch

import inc_mp_plugin as mp
from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.core.timings import Timing
from inc_mp_plugin.gain.bench import TimingSettings
from inc_mp_plugin.model.switch import Switch

BATCH = {"input_ids": helpers.tokens(2)}
QUICK = TimingSettings(repeats=3, most_repeats=3, most_warmups=2)


def measured(model, work=BATCH, **options):
    graph = mp.capture(model, BATCH)
    options = {"formats": ("fp32", "bf16"), "settings": QUICK, **options}
    return graph, mp.time_gains(model, graph, work, **options)


@pytest.mark.parametrize("work", [BATCH, mp.Request(5, 3)], ids=["batch", "request"])
def test_every_group_has_its_configurations_and_the_model_is_as_it_was(work):
    model = helpers.language_model("llama").train()
    before = helpers.state(model)
    graph, gains = measured(model, work)
    helpers.assert_same_state(before, helpers.state(model))
    assert (gains.objective, gains.source, gains.unit, gains.base) == (
        "empirical_time",
        "measured",
        "s",
        "fp32",
    )
    assert [group.ops for group in gains.groups] == list(graph.groups)
    sizes = [len(group.configurations) for group in gains.groups]
    assert sizes == [8, 2, 4, 2, 8, 2, 4, 2, 2]  # q, k and v are free; attention products cannot run in BF16
    assert [bool(group.measured_on) for group in gains.groups] == [False] * 4 + [True] * 4 + [False]
    assert all(group.stderr[1:] != group.stderr[:1] for group in gains.groups)


def test_any_model_on_a_batch():
    model, x = helpers.ResidualCNN().eval(), torch.randn(2, 3, 8, 8)
    graph = mp.capture(model, x)
    gains = mp.time_gains(model, graph, x, formats=("fp32", "bf16"), settings=QUICK)
    assert [len(group.configurations) for group in gains.groups][:1] != [1]


def test_only_some_ops_and_every_group():
    model = helpers.language_model("llama")
    ops = [f"model.layers.{layer}.mlp.up_proj" for layer in (0, 1)]
    _, gains = measured(model, ops=ops, every_group=True)
    free = {group.ops: len(group.configurations) for group in gains.groups if len(group.configurations) > 1}
    assert set(free.values()) == {2}
    assert not any(group.measured_on for group in gains.groups)


def test_the_model_is_as_it_was_after_an_interrupt(monkeypatch):
    model = helpers.language_model("llama")
    before = helpers.state(model)
    selections = []

    def interrupted(self, formats):
        selections.append(formats)
        if len(selections) == 9:
            raise KeyboardInterrupt
        plain(self, formats)

    plain = Switch.select
    monkeypatch.setattr(Switch, "select", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measured(model)
    helpers.assert_same_state(before, helpers.state(model))


def test_a_plan_for_measured_time_runs_through_inc(tmp_path):
    model = helpers.language_model("llama")
    clock = mp.Clock("cpu", QUICK)
    options = {"tau": 1.0, "objective": "empirical_time", "formats": ["bf16"], "clock": clock}
    plan = mp.tune(model, [BATCH], **options, out=tmp_path)
    stored = sorted(path.name for path in tmp_path.iterdir())
    assert "timing.json" in stored
    assert not any("partial" in name for name in stored)
    assert mp.tune(model, [BATCH], **options, out=tmp_path).formats == plan.formats
    lowered = mp.apply(copy.deepcopy(model), plan, [])
    assert lowered(**BATCH).logits.isfinite().all()


def test_what_is_refused_before_anything_is_measured():
    model = helpers.language_model("llama")
    with pytest.raises(InputError, match="a CPU only emulates fp8_e4m3"):
        measured(model, formats=("fp32", "fp8_e4m3"))
    with pytest.raises(InputError, match="time is measured for one lower format at a time"):
        measured(model, formats=("fp32", "bf16", "fp16"))
    with pytest.raises(InputError, match="habana_frameworks is not installed"):
        measured(model.bfloat16(), formats=("bf16", "fp8_e4m3"), device="hpu")


def test_a_model_that_does_not_fit_is_one_line_and_comes_back(monkeypatch):
    model = helpers.language_model("llama")
    graph = mp.capture(model, BATCH)
    places, plain = [], model.to

    def to(device):
        places.append(str(device))
        if len(places) == 1:
            message = "CUDA out of memory.\nTried to allocate"
            raise torch.OutOfMemoryError(message)
        return plain(device)

    monkeypatch.setattr(model, "to", to)
    before = helpers.state(model)
    with pytest.raises(
        InputError, match="cannot be put on 'cpu': OutOfMemoryError: CUDA out of memory. Tried"
    ):
        mp.time_gains(model, graph, BATCH, formats=("fp32", "bf16"), settings=QUICK)
    assert places == ["cpu", "cpu"]
    helpers.assert_same_state(before, helpers.state(model))


def test_a_model_that_is_refused_keeps_its_training_modes(monkeypatch):
    model = helpers.language_model("llama").train()
    model.lm_head.eval()
    graph = mp.capture(model, BATCH)
    before = [module.training for module in model.modules()]
    modes, plain = [], model.to

    def to(device):
        modes.append(model.training)
        if len(modes) == 1:
            message = "no room"
            raise torch.OutOfMemoryError(message)
        return plain(device)

    monkeypatch.setattr(model, "to", to)
    with pytest.raises(InputError, match="cannot be put on 'cpu'"):
        mp.time_gains(model, graph, BATCH, formats=("fp32", "bf16"), settings=QUICK)
    assert modes == [False, False]
    assert [module.training for module in model.modules()] == before
    assert model.training
    assert not model.lm_head.training


def test_a_model_that_cannot_be_converted_is_one_line(monkeypatch):
    def fails(*_, **__):
        message = "no such kernel"
        raise RuntimeError(message)

    monkeypatch.setattr("inc_mp_plugin.stages.stopwatch.switch_to_time", fails)
    with pytest.raises(
        InputError, match="cannot be converted to bf16 on 'cpu': RuntimeError: no such kernel"
    ):
        measured(helpers.language_model("llama"))


def test_a_price_is_the_sum_of_its_passes():
    timing = Timing("cpu", "a CPU", {"ttft": 1, "tpot": 10}, (0.5, 0.1), ())
    assert timing.price_s == 1.5
