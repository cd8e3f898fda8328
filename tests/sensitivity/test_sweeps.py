"""One forward pass for scales and gradients, and measurements that go on after an interrupt."""

import helpers
import numpy as np
import pytest
import torch

from inc_mp_plugin.core.estimate import Estimate
from inc_mp_plugin.graph.capture import capture
from inc_mp_plugin.model import tail
from inc_mp_plugin.model.losses import language_model_loss
from inc_mp_plugin.runtime.store import Partial
from inc_mp_plugin.scales.methods import Scales
from inc_mp_plugin.sensitivity import sweeps
from inc_mp_plugin.sensitivity.resume import measure_in_steps
from inc_mp_plugin.sensitivity.taylor import measure_sensitivity
from inc_mp_plugin.stages.sensitivity_arrays import to_arrays

MEASURED = {"scales": Scales("maxabs_pow2", "cpu"), "formats": ("fp8_e4m3",)}
GB = 10**9


def batches():
    return [{"input_ids": ids} for ids in helpers.tokens(6).split([2, 1, 3])]


def leave_room(monkeypatch, count):
    """Let memory be free for so many batches."""
    free = iter([100 * GB] * (1 + count) + [0] * len(batches()))
    monkeypatch.setattr(sweeps, "free_bytes", lambda device: next(free))


def assert_equal(one, other):
    ours, theirs = to_arrays(one), to_arrays(other)
    assert set(ours) == set(theirs)
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)
    assert one.measured_drift == other.measured_drift


@pytest.mark.parametrize("held", [1, 3])
@pytest.mark.parametrize("kinds", ["loss", "kl", "both"])
@pytest.mark.parametrize("name", ["llama", pytest.param("mixtral", marks=helpers.since_5)])
def test_batches_that_wait_for_their_scales(name, kinds, held, monkeypatch):
    """One forward pass in the place of two gives the same numbers, for as many batches as there is room."""
    model = helpers.language_model(name)
    graph = capture(model, batches()[0])
    passes, results = [], []
    model.model.embed_tokens.register_forward_hook(lambda *_: passes.append(torch.is_grad_enabled()))
    for room in (0, held):
        leave_room(monkeypatch, room)
        passes.clear()
        results.append(measure_sensitivity(model, graph, batches(), yardstick=kinds, **MEASURED))
        everything_rounded = 0 if kinds == "kl" else len(batches())
        assert passes.count(False) == len(batches()) - room + everything_rounded
    assert_equal(*results)


def test_low_memory_holds_nothing(monkeypatch):
    model = helpers.language_model("llama")
    passes = []
    model.model.embed_tokens.register_forward_hook(lambda *_: passes.append(torch.is_grad_enabled()))
    monkeypatch.setattr(sweeps, "free_bytes", lambda device: 100 * GB)
    monkeypatch.setattr(tail, "tail_of", lambda *_: None)
    graph = capture(model, batches()[0])
    passes.clear()
    measure_sensitivity(model, graph, batches(), yardstick="kl", memory="low", **MEASURED)
    assert passes.count(False) == len(batches())


def test_the_part_behind_the_blocks_is_looked_for_once(monkeypatch):
    """The rows and everything rounded have one tail."""
    model, looked, real = helpers.language_model("llama"), [], tail.tail_of
    monkeypatch.setattr(tail, "tail_of", lambda *arguments: looked.append(1) or real(*arguments))
    graph = capture(model, batches()[0])
    measure_sensitivity(model, graph, batches(), yardstick="both", memory="low", **MEASURED)
    assert len(looked) == 1


def test_memory_that_a_batch_took_is_kept_in_mind(monkeypatch):
    """50 of 400 GB are taken by the first batch, so that a second one leaves 300, and a third one less."""
    model = helpers.language_model("llama")
    passes = []
    model.model.embed_tokens.register_forward_hook(lambda *_: passes.append(torch.is_grad_enabled()))
    graph = capture(model, batches()[0])
    free = iter([400 * GB, 400 * GB, 350 * GB, 300 * GB])
    monkeypatch.setattr(sweeps, "free_bytes", lambda device: next(free))
    passes.clear()
    measure_sensitivity(model, graph, batches(), yardstick="kl", **MEASURED)
    assert passes.count(False) == 1


@pytest.fixture(scope="module")
def llama():
    """A model, its graph, and its sensitivities by both yardsticks."""
    model = helpers.language_model("llama")
    graph = capture(model, batches()[0])
    return model, graph, measure_sensitivity(model, graph, batches(), yardstick="both", **MEASURED)


@pytest.mark.parametrize("stop", [2, 4, 5, 7, 8, 10])
def test_resume(stop, llama, tmp_path, monkeypatch):
    """Whichever forward pass is interrupted, the numbers are the same, and no finished step is made again.

    Passes: a trial whether samples mix; three for the scales, as no batch waits for them; three for the
    gradients; and three with everything rounded.
    """
    model, graph, whole = llama
    saved = Partial(tmp_path / "partial.npz", "key")
    settings = {"partial": saved, "loss": True, "kl": Estimate(), **MEASURED}
    passes = []

    def counted(model, batch):
        passes.append(batch)
        if len(passes) == stop:
            raise KeyboardInterrupt
        return language_model_loss(model, batch)

    leave_room(monkeypatch, 0)
    before = helpers.state(model)
    with pytest.raises(KeyboardInterrupt):
        measure_in_steps(model, graph, batches(), counted, **settings)
    helpers.assert_same_state(before, helpers.state(model))
    leave_room(monkeypatch, 0)
    assert_equal(measure_in_steps(model, graph, batches(), counted, **settings), whole)
    steps, trials, interrupted = 9, 2, 1
    assert len(passes) <= steps + trials + interrupted


def interrupt_after(times, monkeypatch):
    """Interrupt as soon as steps have been saved so many times."""
    real, saved = Partial.save, []

    def save(self, arrays):
        real(self, arrays)
        saved.append(arrays)
        if len(saved) == times:
            raise KeyboardInterrupt

    monkeypatch.setattr(Partial, "save", save)


@pytest.mark.parametrize("step", [1, 3, 4, 5, 7])
def test_resume_of_batches_that_waited(step, llama, tmp_path, monkeypatch):
    """All three batches wait for their scales, and nine steps are saved: three maxabs, rows, and losses each.

    After any of them the others are made, each once: activations are lost, so that a batch without rows has
    another forward pass; and where rows are due, it is tried once more whether samples mix.
    """
    model, graph, whole = llama
    saved, passes = Partial(tmp_path / "partial.npz", "key"), []

    def counted(model, batch):
        passes.append(batch)
        return language_model_loss(model, batch)

    settings = {"partial": saved, "loss": True, "kl": Estimate(), **MEASURED}
    leave_room(monkeypatch, 3)
    interrupt_after(step, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        measure_in_steps(model, graph, batches(), counted, **settings)
    calibrated, measured, rounded = (min(max(step - part, 0), 3) for part in (0, 3, 6))
    assert len(passes) == 1 + calibrated + rounded
    passes.clear()
    leave_room(monkeypatch, 0)
    assert_equal(measure_in_steps(model, graph, batches(), counted, **settings), whole)
    assert len(passes) == (3 - calibrated) + (3 - measured) + (measured < 3) + (3 - rounded)


def test_resume_with_other_formats_starts_over(tmp_path):
    model = helpers.language_model("llama")
    graph = capture(model, batches()[0])
    saved = Partial(tmp_path / "partial.npz", "key")

    def interrupted(model, batch):
        if len(batch["input_ids"]) == 1:
            raise KeyboardInterrupt
        return language_model_loss(model, batch)

    with pytest.raises(KeyboardInterrupt):
        measure_in_steps(model, graph, batches(), interrupted, partial=saved)
    assert len(saved.load()["loss loss"]) == 2
    sensitivity = measure_in_steps(model, graph, batches(), language_model_loss, partial=saved, **MEASURED)
    assert_equal(sensitivity, measure_sensitivity(model, graph, batches(), language_model_loss, **MEASURED))
