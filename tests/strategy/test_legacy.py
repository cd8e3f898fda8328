"""The strategy in the tuning of INC up to 3.7.1: INT8, with ops that fall back to FP32."""

import itertools
from importlib.util import find_spec

import helpers
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import inc_mp_plugin as mp
from inc_mp_plugin.sensitivity.integer import IntegerNoise

legacy = pytest.mark.skipif(not find_spec("neural_compressor.strategy"), reason="INC up to 3.7.1 has it")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.out = nn.Linear(16, 32), nn.Linear(32, 32), nn.Linear(32, 4)

    def forward(self, x):
        return self.out(torch.relu(self.fc2(torch.relu(self.fc1(x)))))


def loss_fn(model, batch):
    x, label = batch
    return nn.functional.cross_entropy(model(x), label, reduction="none")


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # INC writes its history to ./nc_workspace


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def data():
    x = torch.randn(64, 16, generator=torch.Generator().manual_seed(1))
    return x, (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()


def by_hand(net, data):
    """Loss MSE of each op in INT8, from autograd, sample by sample."""
    x, label = data
    inputs, losses = {}, dict.fromkeys(("fc1", "fc2", "out"), 0.0)
    hooks = [
        net.get_submodule(name).register_forward_pre_hook(
            lambda module, args, name=name: inputs.setdefault(name, []).append(args[0])
        )
        for name in losses
    ]
    largest = {}
    net(x)
    for name in losses:
        largest[name] = inputs[name][0].abs().max()
    inputs.clear()
    for i in range(len(x)):
        loss = loss_fn(net, (x[i : i + 1].requires_grad_(), label[i : i + 1])).sum()
        for name in losses:
            weight, value = net.get_submodule(name).weight, inputs[name][-1]
            of_input, of_weight = torch.autograd.grad(loss, (value, weight), retain_graph=True)
            step = 2 * largest[name] / 255
            steps = 2 * weight.abs().amax(dim=1, keepdim=True) / 255
            squares = (step**2 / 12 * of_input**2).sum() + (steps**2 / 12 * of_weight**2).sum()
            losses[name] += float(squares) / len(x)
    for hook in hooks:
        hook.remove()
    return losses


def test_the_noise_of_int8_against_autograd(net, data):
    from inc_mp_plugin.sensitivity.maxabs import observe_maxabs
    from inc_mp_plugin.sensitivity.one_batch import Pass
    from inc_mp_plugin.sensitivity.rows import join
    from inc_mp_plugin.sensitivity.taylor import sensitivity_rows

    batches = [tuple(part) for part in zip(*(tensor.split(16) for tensor in data), strict=True)]
    graph = mp.capture(net, batches[0][0])
    noise = IntegerNoise(observe_maxabs(net, graph, batches, loss_fn))
    rows = sensitivity_rows(Pass(net, graph, loss_fn, noise), batches)
    seen = join(graph, [part["loss"] for part in rows])
    losses = dict(zip(seen.ops, seen.rounding["int8"].mean(axis=0), strict=True))
    for name, expected in by_hand(net, data).items():
        assert losses[name] == pytest.approx(expected, rel=1e-4)


def fit(net, data, *, score=None, **kwargs):
    from neural_compressor import PostTrainingQuantConfig, quantization
    from neural_compressor.config import AccuracyCriterion, TuningCriterion

    mp.register()
    config = PostTrainingQuantConfig(
        quant_level=1,  # "auto" would take INC's own strategies, whatever is asked for
        tuning_criterion=TuningCriterion(strategy="ip_mse", max_trials=20, strategy_kwargs=kwargs),
        accuracy_criterion=AccuracyCriterion(tolerable_loss=0.01),
    )
    loader = DataLoader(TensorDataset(*data), batch_size=16)
    return quantization.fit(net, config, calib_dataloader=loader, eval_func=score)


def lowered(model):
    kinds = {name: type(module).__module__ for name, module in model.named_modules()}
    return {name for name in ("fc1", "fc2", "out") if "quantized" in kinds[name]}


def best_by_brute_force(net, data, tau):
    """The set of ops that saves most within tau, of all sets."""
    cost, (x, label) = by_hand(net, data), data
    with torch.no_grad():
        budget = tau**2 * float(np.mean(loss_fn(net, (x, label)).numpy() ** 2))
    sets = [set(s) for size in range(4) for s in itertools.combinations(cost, size)]
    fitting = [names for names in sets if sum(cost[name] for name in names) <= budget]
    return max(fitting, key=lambda names: sum(net.get_submodule(name).weight.numel() for name in names))


@legacy
@pytest.mark.parametrize("tau", [1.0, 0.003, 0.0015, 0.0008])
def test_fit_falls_back_what_the_program_says(net, data, tau):
    expected = best_by_brute_force(net, data, tau)
    result = fit(net, data, tau=tau, loss_fn=loss_fn)
    assert lowered(result.model) == expected


@legacy
def test_smaller_plans_follow_until_one_is_good_enough(net, data):
    seen = []

    def score(model):
        seen.append(lowered(model))
        return 1.0 if len(seen[-1]) <= 1 else 0.5

    result = fit(net, data, tau=1.0, loss_fn=loss_fn, score=score)
    assert lowered(result.model) == seen[-1]
    assert len(seen[-1]) <= 1
    trials = seen[1:]  # the first is the base model
    assert [len(names) for names in trials] == sorted({len(names) for names in trials}, reverse=True)


def next_token_loss(model, batch):
    logits = model(batch[0]).logits[:, :-1]
    return nn.functional.cross_entropy(logits.transpose(1, 2), batch[1][:, 1:], reduction="none").mean(dim=1)


@legacy
def test_a_language_model():
    """INC calls some of its modules by another name than ours."""
    ids = helpers.tokens(8, 16)
    model = helpers.language_model("llama")
    result = fit(model, (ids, ids), tau=1.0, loss_fn=next_token_loss).model
    kinds = {name: type(module).__module__ for name, module in result.named_modules()}
    assert (
        sum(
            "quantized" in kind
            for name, kind in kinds.items()
            if name.removesuffix(".module").endswith("_proj")
        )
        == 14
    )
    whole = fit(helpers.language_model("llama"), (ids, ids), tau=1e-9, loss_fn=next_token_loss).model
    assert not any(
        "quantized" in type(module).__module__ for name, module in whole.named_modules() if "_proj" in name
    )


@legacy
def test_other_names_are_still_checked():
    from neural_compressor.config import TuningCriterion

    mp.register()
    assert TuningCriterion(strategy="basic").strategy == "basic"
    with pytest.raises(AssertionError):
        TuningCriterion(strategy="ip_msee")


@pytest.mark.skipif(bool(find_spec("neural_compressor.strategy")), reason="INC from 3.8 on")
def test_later_versions_hear_nothing_of_it():
    import sys

    mp.register()
    assert "inc_mp_plugin.strategy.legacy" not in sys.modules
