"""INC's `autotune` over thresholds: fastest first, sensitivities measured once, the best if none will do."""

import gc
import weakref

import helpers
import neural_compressor.common.version
import pytest
import torch
from calibration import INPUTS
from neural_compressor.torch.quantization import FP8Config, TuningConfig, autotune

import inc_mp_plugin as mp
from inc_mp_plugin.inc import versions
from inc_mp_plugin.sensitivity import resume

pytestmark = pytest.mark.usefixtures("registered")

TAUS = [0.0002, 0.002, 0.0005]


def calibrate(model):
    for ids in INPUTS:
        model(ids)


def patched(model):
    return sum(type(module).__name__.startswith("Patched") for module in model.modules())


class Judge:
    """An evaluation that gives the base model 100 and a quantized one what `score` says of its size."""

    def __init__(self, score):
        self.score = score
        self.sizes = []
        self.models = []

    def __call__(self, model):
        self.models.append(weakref.ref(model))
        self.sizes.append(patched(model))
        return 100.0 if self.sizes[-1] == 0 else self.score(self.sizes[-1])


def tune(judge, config, **options):
    given = TuningConfig(config_set=config, tolerable_loss=0.01, max_trials=len(TAUS), **options)
    return autotune(helpers.language_model("llama"), given, judge, run_fn=calibrate)


def sizes_of_plans():
    """How many ops each threshold lowers, found one by one."""
    model, batches = helpers.language_model("llama"), [{"input_ids": ids} for ids in INPUTS]
    graph = mp.capture(model, batches[0])
    seen = mp.measure_sensitivity(model, graph, batches)
    gains = mp.memory_gains(graph, ("fp32", "fp8_e4m3"))
    counts = [len(mp.solve(gains, seen, tau).quantized) for tau in sorted(TAUS, reverse=True)]
    assert counts[0] > counts[1] > counts[2] > 0
    return counts


CONFIGS = {
    "a list of thresholds": lambda: mp.IPMSEConfig(tau=TAUS),
    "a list of configurations": lambda: [mp.IPMSEConfig(tau=tau) for tau in sorted(TAUS, reverse=True)],
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_the_first_that_is_good_enough_wins(config, monkeypatch):
    large, middle, _ = sizes_of_plans()
    measured = []
    original = resume.measure_in_steps
    monkeypatch.setattr(resume, "measure_in_steps", lambda *a, **k: measured.append(1) or original(*a, **k))
    judge = Judge(lambda size: 99.5 if size <= middle else 90.0)
    best = tune(judge, config())
    assert judge.sizes == [0, large, middle]
    assert patched(best) == middle
    assert len(measured) == 1


def test_the_best_is_returned_if_none_is_good_enough():
    sizes = sizes_of_plans()
    judge = Judge(lambda size: 50.0 + size)  # the largest is the best, and far from good enough
    assert patched(tune(judge, mp.IPMSEConfig(tau=TAUS))) == sizes[0]
    assert judge.sizes == [0, *sizes]


def test_trials_do_not_stay_alive():
    judge = Judge(lambda size: 50.0 - size)
    best = tune(judge, mp.IPMSEConfig(tau=TAUS))
    gc.collect()
    assert [ref() for ref in judge.models if ref() is not None] == [best]
    assert torch.isfinite(best(INPUTS[0]).logits).all()


def test_configurations_are_compared_by_their_content():
    config, same, other = (mp.IPMSEConfig(tau=tau, use_qdq=True) for tau in (0.1, 0.1, 0.2))
    assert config == same
    assert config != other
    assert config != FP8Config()
    assert [each.ours["tau"] for each in mp.IPMSEConfig(tau=TAUS).expand()] == sorted(TAUS, reverse=True)
    expanded = mp.IPMSEConfig(tau=TAUS, dump_stats_path="./here/measure", use_qdq=True).expand()
    assert {(each.dump_stats_path, each.use_qdq) for each in expanded} == {("./here/measure", "True")}


def test_versions_that_forget_the_best_are_named(caplog):
    """INC 3.5 and 3.6: None, and a line that says so beforehand; later versions return the best."""
    given = TuningConfig(config_set=mp.IPMSEConfig(tau=[1.0]), tolerable_loss=0.01)
    judge = Judge(lambda size: 50.0)
    best = autotune(helpers.language_model("llama"), given, judge, run_fn=calibrate)
    said = "max_trials=1" in caplog.text
    assert (best is None) == said == (versions.version() < (3, 7))


@pytest.mark.parametrize("unknown", ["3.4.1", "4.0"])
def test_unknown_versions_are_refused(monkeypatch, unknown):
    monkeypatch.setattr(neural_compressor.common.version, "__version__", unknown)
    with pytest.raises(mp.InputError, match=f"INC {unknown} is installed; ip_mse runs with neural-comp"):
        versions.version()


def test_several_values_are_for_autotune_only():
    from neural_compressor.torch.quantization import quantize

    with pytest.raises(mp.InputError, match="tau is .*autotune tries several"):
        quantize(helpers.language_model("llama"), mp.IPMSEConfig(tau=TAUS), run_fn=calibrate)
