"""Several processes of torch.distributed give the plan of one, each from a share of the samples."""

import json
import re

import helpers
import pytest
from processes import ROOT, torchrun

import inc_mp_plugin as mp
from inc_mp_plugin.core.errors import PluginError
from inc_mp_plugin.runtime import ranks

BATCHES = [{"input_ids": helpers.tokens(2, 16, seed)} for seed in range(5)]
NOISE = mp.Noise("measured", mp.Scales("maxabs_arbitrary", "cpu"), ("fp8_e4m3",))


@pytest.fixture(scope="module")
def in_ranks(tmp_path_factory):
    """Folders of all modes of in_ranks.py, in two processes that run one mode after the other."""
    folder = tmp_path_factory.mktemp("ranks")
    modes = ("shared", "one starves", "alps", "ops", "no plan", "inc")
    done = torchrun(ROOT / "tests" / "strategy" / "in_ranks.py", folder, *modes)
    assert done.returncode == 0, done.stderr
    return folder


def said_in(folder):
    return [json.loads((folder / f"said-{rank}.json").read_text()) for rank in (0, 1)]


def times_said(folder, pattern):
    return sum(len(re.findall(pattern, (folder / f"log-{rank}.txt").read_text())) for rank in (0, 1))


def test_alone_every_function_is_for_one_process():
    assert (ranks.rank(), ranks.size()) == (0, 1)
    assert ranks.share(BATCHES) == BATCHES
    assert ranks.exchange(b"it") == [b"it"]
    ranks.tell(b"nobody")


def test_a_process_that_is_gone_is_one_line(monkeypatch):
    def gone(*_):
        message = "Connection closed by peer. Check the logs.\nmore"
        raise RuntimeError(message)

    monkeypatch.setattr(ranks, "size", lambda: 2)
    monkeypatch.setattr(ranks, "_gather", gone)
    monkeypatch.setattr(ranks, "_broadcast", gone)
    expected = "has ended, and its own error says why (Connection closed by peer)"
    for call in (lambda: ranks.exchange(b"it"), lambda: ranks.tell(b"it"), ranks.hear):
        with pytest.raises(PluginError) as told:
            call()
        assert str(told.value) == f"another process of this run {expected}"


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["shared", "one starves"])
def test_two_processes_make_the_plan_of_one(tmp_path, in_ranks, mode):
    alone = mp.tune(helpers.language_model("llama"), BATCHES, tau=0.0001, noise=NOISE, out=tmp_path / "alone")
    assert alone.binds
    together = in_ranks / mode
    said = said_in(together)
    assert said[0] == said[1] == {"quantized": sorted(alone.quantized), "loss_mse": alone.loss_mse}
    assert times_said(together, "Capturing the graph") == 1
    single, shared = (
        mp.Sensitivity(*(arrays[key] for key in ("ops", "loss", "input", "weight")))
        for arrays in map(_arrays, (tmp_path / "alone", together))
    )
    for key in ("loss", "input", "weight"):
        assert (getattr(single, key) == getattr(shared, key)).all()
    by_one, by_two = (_arrays(folder) for folder in (tmp_path / "alone", together))
    for key in ("rounding_fp8_e4m3", "kl_rounding_fp8_e4m3"):
        assert (by_one[key] == by_two[key]).all()
    assert not list(together.glob("*partial*"))


@pytest.mark.slow
def test_two_processes_value_ops_as_one_does(tmp_path, in_ranks):
    alone = mp.tune(
        helpers.language_model("llama"), BATCHES, strategy="alps", budget=0.8, out=tmp_path / "alone"
    )
    together = in_ranks / "alps"
    first, second = said_in(together)
    assert first == second == {"quantized": sorted(alone.quantized)}
    assert times_said(together, r"ALPS, each of 19 ops alone: \d+ runs\n") == 1
    single, shared = (
        json.loads((folder / "alps.json").read_text())["values"]["fp8_e4m3"]
        for folder in (tmp_path / "alone", together)
    )
    assert shared == pytest.approx(single, abs=1e-7)
    assert not list(together.glob("*partial*"))


@pytest.mark.slow
def test_two_processes_share_the_ops_of_a_score(in_ranks):
    first, second = said_in(in_ranks / "ops")
    assert first["values"] == second["values"] == {op: float(ord(op)) for op in "abcd"}
    assert (first["scored"], second["scored"]) == (["a"], ["b", "c", "d"])  # the first has the base, too


def _arrays(folder):
    import numpy as np

    with np.load(folder / "sensitivity.npz", allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.mark.slow
def test_an_error_of_the_first_is_an_error_of_all(in_ranks):
    first, second = said_in(in_ranks / "no plan")
    assert first == second
    assert "least tau" in first["error"]


@pytest.mark.slow
def test_inc_quantizes_the_same_ops_in_every_process(tmp_path, in_ranks):
    from neural_compressor.torch.quantization import quantize

    first, second = said_in(in_ranks / "inc")
    config = mp.IPMSEConfig(tau=0.0005, dump_stats_path=str(tmp_path / "alone" / "measure"))
    model = quantize(
        helpers.language_model("llama"), config, run_fn=lambda m: [m(**batch) for batch in BATCHES]
    )
    names = [n for n, m in model.named_modules() if type(m).__name__.startswith("Patched")]
    assert first["quantized"] == second["quantized"] == sorted(names)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["samples", "fsdp"])
def test_a_recipe_in_two_processes(tmp_path, parallel):
    recipe = ROOT / "recipes" / "tiny-llama.yaml"
    changes = ["calibration.samples=6", "calibration.batch_size=2", "validation=null", "confidence=null"]
    plans = []
    for name, processes, more in (("one", 1, []), ("two", 2, [f"run.parallel={parallel}"])):
        out = tmp_path / name
        command = ["-m", "inc_mp_plugin.cli", "tune", recipe, *changes, *more, "--out", out]
        done = torchrun(*command, processes=processes)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("Everything is in") == 1
        assert ("fsdp over 2 processes; this one holds" in done.stderr) == (more == ["run.parallel=fsdp"])
        plans.append(json.loads((out / "plan.json").read_text()))
    for key in ("formats", "predicted"):
        assert plans[0][key] == plans[1][key]
