"""The digits experiment: its parts in seconds; the whole of it, reduced, where slow tests run."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

RECIPE = Path(__file__).parent.parent / "recipes" / "digits"
sys.path.insert(0, str(RECIPE))  # its files stand on each other, as when it is run as a script

import digits  # noqa: E402
import experiment  # noqa: E402
import outcome  # noqa: E402
import pages  # noqa: E402
import pricing  # noqa: E402
import tabulated  # noqa: E402
import training  # noqa: E402

from inc_mp_plugin.gain.per_op import bit_operation_gains  # noqa: E402
from inc_mp_plugin.graph.capture import capture  # noqa: E402
from inc_mp_plugin.qat.layers import as_plain, in_formats, quantized, rounded_ops  # noqa: E402
from inc_mp_plugin.report.write import write_pages  # noqa: E402

LITTLE = training.Training(1, 0.05)


def test_the_split_is_fixed_and_nothing_is_in_both():
    train, test = digits.load()
    assert (len(train.images), len(test.images)) == (1000, 797)
    assert float(train.images.min()) == 0.0 and float(train.images.max()) == 1.0
    rows = {tuple(image.flatten().tolist()) for image in train.images}
    # Writers seldom repeat a digit pixel by pixel.
    assert sum(tuple(image.flatten().tolist()) in rows for image in test.images) < 5
    assert torch.equal(digits.load()[0].labels, train.labels)


@pytest.mark.parametrize(("across", "down"), [(0, 0), (1, 0), (-1, 0), (0, 1), (1, -1)])
def test_images_move(across, down):
    image = torch.zeros(1, 1, 8, 8)
    image[0, 0, 3, 5] = 1.0
    assert digits.moved(image, across, down).nonzero().tolist() == [[0, 0, 3 + down, 5 + across]]
    corner = torch.zeros(1, 1, 8, 8)
    corner[0, 0, 7, 7] = 1.0
    assert float(digits.moved(corner, 1, 1).sum()) == 0.0


def test_epochs_follow_from_their_seed():
    data = digits.load()[0]
    one, same, other = (data.epochs(2, seed) for seed in (4, 4, 5))
    assert len(one) == 20 and all(len(images) == 100 for images, _ in one)
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one[0][0], other[0][0])
    labels = torch.cat([labels for _, labels in one[:10]])
    assert torch.equal(labels.sort().values, data.labels.sort().values)  # every image once


def test_ops_and_what_they_cost():
    """16 ops; MACs by hand: 9 * 6 * 6 taps on 64 pixels, as many where channels double and pixels quarter."""
    graph = capture(digits.Network(0), digits.load()[0].images[:2])
    macs = {op.name: op.macs for op in graph.ops}
    assert len(macs) == 16 and macs.keys() > training.KEPT
    assert macs["blocks.0.conv1"] == 9 * 6 * 6 * 64 == macs["blocks.5.conv2"] == 9 * 24 * 24 * 4
    assert macs["blocks.2.shortcut.0"] == 6 * 12 * 16
    gains = bit_operation_gains(graph, ("int4", "int2"), training.KEPT)
    assert gains.cost == 16 * sum(m for name, m in macs.items() if name not in training.KEPT)


def test_a_network_follows_from_its_seed():
    one, same, other = (digits.Network(seed).stem.weight for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_noise_of_a_step():
    """D / sqrt(12): of inputs by op, of weights 2 mean|w| / sqrt(1)."""
    noise = pricing.StepNoise({"a": torch.tensor(0.6)})
    found = noise.of_input("a", 0, torch.zeros(2, 3), "int2")
    torch.testing.assert_close(found, torch.full((2, 3), 0.6 / 12**0.5))
    weight = torch.tensor([[1.0, -3.0]])
    torch.testing.assert_close(noise.of_weight(weight, "int2"), torch.full((1, 2), 4.0 / 12**0.5))


def test_ip_mse_against_autograd():
    """D^2 / 12 times the squared gradients at the rounded input and weight, image by image."""
    data, name = digits.load()[0], "blocks.2.conv2"
    network = digits.Network(0)
    formats = {op: "int8" if op in training.KEPT else "int4" for op in ("stem", name, "head")}
    base = quantized(network, formats, training.calibration()).eval()
    graph = capture(network, data.images[:2])
    graph = replace(graph, ops=tuple(op for op in graph.ops if op.name == name))
    found = pricing.losses_of(base, graph)
    op = rounded_ops(base)[name]
    step_of_weight = 2 * float(op.weight.detach().abs().mean())
    lower = rounded_ops(in_formats(base, {name: "int2"}, training.calibration()))[name]
    step_of_input = float(lower.input_quantizer.step.detach())
    for image in range(3):
        plain, seen = as_plain(base), []
        module = plain.get_submodule(name)
        module.register_forward_hook(lambda m, args, out, seen=seen: seen.append(args[0]))
        batch = (data.images[image : image + 1], data.labels[image : image + 1])
        gradients = torch.autograd.grad(digits.loss_fn(plain, batch).sum(), [seen[0], module.weight])
        squares = [float(g.double().square().sum()) for g in gradients]
        expected = (step_of_input**2 * squares[0] + step_of_weight**2 * squares[1]) / 12
        assert found.row_costs("int2")[image, 0] == pytest.approx(expected, rel=1e-4)


def test_equal_values_lower_as_few_ops_as_possible():
    values = [pricing.equal_values(("a", "b", "c"), draw).values["int2"] for draw in range(8)]
    assert all(1.0 <= v < 1.001 for one in values for v in one.values())
    assert len({min(one, key=one.get) for one in values}) == 3  # each op comes first in some draw


@pytest.mark.slow
def test_what_was_trained_is_read_again(tmp_path):
    model, full = training.full_precision(tmp_path, LITTLE, 0)
    again, read = training.full_precision(tmp_path, LITTLE, 0)
    assert read == full and training.state_hash(again) == training.state_hash(model)
    base, whole = training.base(tmp_path, LITTLE, 0, model)
    same, read = training.base(tmp_path, LITTLE, 0, model)
    assert read == whole and training.state_hash(same) == training.state_hash(base)
    first = training.Mixes(tmp_path / "mixes.partial.npz", base, LITTLE, 0)
    found = [first.trial(ops) for ops in ((), ("blocks.0.conv1",), ["blocks.0.conv1"])]
    assert first.trained == 2 and found[1] == found[2] != found[0]
    second = training.Mixes(tmp_path / "mixes.partial.npz", base, LITTLE, 0)
    assert [second.trial(ops) for ops in ((), ("blocks.0.conv1",))] == found[:2] and second.trained == 0
    changed = training.Mixes(tmp_path / "mixes.partial.npz", base, training.Training(2, 0.05), 0)
    assert not changed.trials


def made_up():
    """Two seeds, two budgets; accuracies chosen by hand."""

    def trial(accuracy, loss):
        return training.Trial(1.0, 0.0, accuracy, loss, 1.0)

    seeds = []
    for seed, full in ((0, 0.98), (1, 0.99)):
        mixes = [
            outcome.Mix(method, draw, budget, budget - 0.01, ("blocks.0.conv1",), trial(full - lost, 0.1))
            for method in pricing.METHODS
            for draw in range(2 if method in pricing.DRAWN else 1)
            for budget, lost in ((0.6, 0.02 + 0.01 * draw), (0.9, 0.005))
        ]
        sums = [outcome.Sum(("blocks.0.conv1",), x, 2 * x, x, 1 - x) for x in (0.1, 0.2, 0.4)]
        prices = {m: {"blocks.0.conv1": 0.5, "blocks.1.conv1": 0.1} for m in ("ip_mse", "alps", "eagl")}
        seeds.append(
            outcome.SeedOutcome(
                seed,
                ("blocks.0.conv1", "blocks.1.conv1"),
                trial(full, 0.05),
                trial(full - 0.001, 0.06),
                tuple(mixes),
                tuple(sums),
                {"statistics": trial(0.9, 0.3), "scaled": trial(0.8, 0.4)},
                prices,
                {"alps": 3.0, "ip_mse": 1.0, "eagl": 0.01},
                5,
            )
        )
    return outcome.Outcome(tuple(seeds), (0.6, 0.9))


def test_an_outcome_as_json():
    one = made_up().seeds[0]
    assert outcome.from_json(json.loads(json.dumps(outcome.to_json(one)))) == one


def test_what_the_tables_say():
    found = made_up()
    lost = {m: found.by_seed(m, 0.6, tabulated.accuracy_lost) for m in ("ip_mse", "random")}
    assert lost["ip_mse"] == pytest.approx([2.0, 2.0])
    assert lost["random"] == pytest.approx([2.5, 2.5])  # 2 and 3 points in two draws
    assert found.cost("alps", 0.9) == pytest.approx(0.89)
    # FP32 is 98 and 99 %: 0.71 points of standard deviation; 0.5 lost at 90 % are within it, 2 at 60 % not.
    assert tabulated.spread_of_full(found) == pytest.approx(0.5**0.5)
    assert tabulated.recovered_from(found, "alps") == 0.9
    assert found.seeds[0].correlation() == pytest.approx(1.0)
    assert found.seeds[0].correlation("accuracy") == pytest.approx(-1.0)
    assert [table.rows for table in tabulated.tables(found)][3][0] == ("IP-MSE", "90")


def test_the_report_has_every_figure(tmp_path):
    path = write_pages(tmp_path, pages.report(made_up()))
    text = path.read_text()
    names = {figure.name for figure in pages.report(made_up()).figures}
    assert names == {"accuracy", "cross-entropy", "additivity", "choices"}
    assert {f.stem for f in (tmp_path / "figures").glob("*.png")} == names
    assert text.count("<svg") == len(names) and "first to last" in text


@pytest.mark.slow
def test_the_reduced_experiment(tmp_path, monkeypatch, capsys):
    """Interrupted and taken up again: nothing is trained twice, budgets are kept, and mixes recover."""
    done = []
    really = training.finetune

    def counted(*arguments, **settings):
        if len(done) == 12:
            done.append(None)  # only once
            raise KeyboardInterrupt
        result = really(*arguments, **settings)
        done.append(result)
        return result

    monkeypatch.setattr(training, "finetune", counted)
    command = ["--out", str(tmp_path), "--reduced"]
    with pytest.raises(KeyboardInterrupt):
        experiment.main(command)
    assert experiment.main(command) == 0
    assert "first to last" in capsys.readouterr().out
    found = outcome.from_json(json.loads((tmp_path / "seed-0" / "outcome.json").read_text()))
    # FP32, 4 bits, ALPS's base and ops, sums, mixes, and all in 2 bits from scaled steps; and one interrupt.
    sums = {one.lowered for one in found.sums}
    assert len(done) == 2 + 1 + len(found.ops) + len(sums) + found.trained + 1 + 1

    assert all(mix.cost <= mix.budget + 1e-9 for mix in found.mixes)
    assert {mix.method for mix in found.mixes} == set(pricing.METHODS)
    assert found.full_precision.accuracy > 0.96 and found.base.accuracy > 0.96
    low, high = experiment.REDUCED.budgets[0], experiment.REDUCED.budgets[-1]
    reached = {(mix.method, mix.budget): mix.trial.accuracy for mix in found.mixes}
    everything = found.everything["statistics"].accuracy
    for method in ("ip_mse", "alps"):
        assert found.full_precision.accuracy - reached[method, high] < 0.01  # recovered
        assert everything < reached[method, low] < reached[method, high] + 0.005
    assert found.correlation("loss") > 0.5 and found.correlation("accuracy") > 0.5

    monkeypatch.setattr(training, "finetune", None)  # a second call trains nothing
    assert experiment.main(command) == 0
    assert (tmp_path / "report.html").exists() and not list(tmp_path.glob("*/*.partial.npz"))
