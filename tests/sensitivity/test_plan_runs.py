"""Plans side by side: the same losses and logits, bit by bit, as with the plan's ops rounded alone."""

import logging
from collections import Counter

import helpers
import pytest
import torch
from torch import nn

from inc_mp_plugin.evaluate.validate import random_plans
from inc_mp_plugin.graph.capture import capture
from inc_mp_plugin.model.losses import language_model_loss
from inc_mp_plugin.model.modes import as_measured
from inc_mp_plugin.model.outcome import outcome
from inc_mp_plugin.runtime.progress import LOGGER
from inc_mp_plugin.scales.methods import Scales
from inc_mp_plugin.sensitivity.maxabs import observe_maxabs
from inc_mp_plugin.sensitivity.plan_runs import PlanRuns
from inc_mp_plugin.sensitivity.rounded import rounded
from inc_mp_plugin.sensitivity.rounding import Rounding

FORMAT = "fp8_e4m3"
BATCHES = [{"input_ids": helpers.tokens(3, seed=1)}, {"input_ids": helpers.tokens(2, 7, seed=2)}]


class Row(nn.Module):
    """Three blocks between two layers; the rule of their scale may ask for the state or its shape."""

    def __init__(self, rule):
        super().__init__()
        torch.manual_seed(0)
        self.start, self.end = nn.Linear(4, 4), nn.Linear(4, 2)
        self.layers = nn.ModuleList(helpers.Scaled(4) for _ in range(3))
        self.rule = rule

    def forward(self, x):
        x = self.start(x)
        for layer in self.layers:
            x = layer(*self.rule(x))
        return self.end(x)


class Counted:
    """A rounder that counts the weights that it rounds."""

    def __init__(self, rounder):
        self.rounder, self.weights = rounder, Counter()

    def input(self, *arguments):
        return self.rounder.input(*arguments)

    def weight(self, weight, format_name):
        self.weights[id(weight)] += 1
        return self.rounder.weight(weight, format_name)

    def packed(self, weight, format_name):
        return self.rounder.packed(weight, format_name)


class Case:
    def __init__(self, model, batches, loss_fn, *, as_used=False):
        self.model, self.batches, self.loss_fn = model, batches, loss_fn
        self.graph = capture(model, batches[0])
        self.ops = [op.name for op in self.graph.ops]
        maxabs = observe_maxabs(model, self.graph, batches, loss_fn)
        self.rounder = Counted(Rounding(Scales("maxabs_arbitrary", "cpu"), (FORMAT,), maxabs))
        self.runs = PlanRuns(model, self.graph, self.rounder, as_used=as_used)
        self.steps = 0

    def run(self, batch):
        return outcome(self.model, batch, self.loss_fn, bare=True)

    def together(self, batch, plans):
        """Outcomes of all plans on a batch, and that of the base model last."""
        outcomes = {}
        with as_measured(self.model):
            for members, result in self.runs.results(plans, lambda: self.run(batch), self.step):
                outcomes |= dict.fromkeys([*members, *([] if outcomes or members else [len(plans)])], result)
                outcomes.setdefault(len(plans), result)
        return [outcomes[number] for number in range(len(plans) + 1)]

    def step(self):
        self.steps += 1

    def check(self, plans):
        """Compare all batches with the plans alone."""
        before = helpers.state(self.model)
        for batch in self.batches:
            ours = self.together(batch, plans)
            for plan, mine in zip([*plans, {}], ours, strict=True):
                with as_measured(self.model), rounded(self.model, self.rounder.rounder, plan):
                    alone = self.run(batch)
                assert torch.equal(mine.losses, alone.losses)
                assert torch.equal(mine.predicted.logits, alone.predicted.logits)
        helpers.assert_same_state(before, helpers.state(self.model))


def lowered(*ops):
    return dict.fromkeys(ops, FORMAT)


def some(ops, *more):
    """Random plans, each op of a few alone, all ops twice, and nothing."""
    drawn = [lowered(*plan) for plan in random_plans(ops, 4, 0)]
    return [
        *drawn,
        *(lowered(op) for op in (*ops[:: max(1, len(ops) // 4)], *more)),
        lowered(*ops),
        {},
        lowered(*ops),
    ]


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO, LOGGER.name)
    return lambda: " | ".join(record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("name", ["llama", "mixtral", pytest.param("gpt2", marks=helpers.since_5)])
def test_a_chain(name, said):
    layers = {"n_layer": 3} if name == "gpt2" else {"num_hidden_layers": 5 if name == "mixtral" else 3}
    model = helpers.mixture(name, **layers) if name == "mixtral" else helpers.language_model(name, **layers)
    case = Case(model, BATCHES, None)
    case.check(some(case.ops, "lm_head"))
    assert "in one sweep over" in said()
    assert "one by one" not in said()


def test_weights_are_rounded_once_and_a_prefix_in_the_base_format_is_free():
    model = helpers.language_model("llama", num_hidden_layers=3)
    case, ran = Case(model, BATCHES, None), Counter()
    plans = [lowered(op) for op in case.ops if op.endswith("up_proj")]
    plans += [lowered("model.layers.1.mlp.up_proj", op) for op in ("lm_head", "model.layers.2.mlp.up_proj")]
    case.together(BATCHES[0], plans)  # which way they run is decided
    case.rounder.weights.clear()
    case.steps = 0
    for name in ("model.layers.0", "model.layers.1", "model.layers.2", "lm_head"):
        model.get_submodule(f"{name}.mlp" if "layers" in name else name).register_forward_hook(
            lambda *_, name=name: ran.update([name])
        )
    steps = case.runs.steps(plans)
    case.together(BATCHES[1], plans)
    # The base model's own; that of layer 0's plan; in layer 1 one more, shared by three plans; and so on.
    assert list(ran.values()) == [2, 3, 5, 6]
    assert steps == case.steps == (2 + 3 + 5 + 6) - 4
    assert list(case.rounder.weights.values()) == [1, 1, 1, 1]


@pytest.mark.parametrize("as_used", [False, True])
def test_without_a_chain(as_used, said):
    """A CNN has no blocks; rounded weights are kept for all plans and batches, unless memory is low."""
    images = [torch.randn(3, 3, 8, 8), torch.randn(2, 3, 8, 8)]
    case = Case(helpers.ResidualCNN().eval(), images, helpers.squared_loss, as_used=as_used)
    plans = some(case.ops)
    case.check(plans)
    assert "plans are measured one by one: the model has no repeated blocks" in said()
    assert case.runs.steps(plans) == len(plans)
    lowered_in = [sum(op in plan for plan in plans) for op in case.ops]
    rounded_in = [case.rounder.weights[id(case.model.get_submodule(op).weight)] for op in case.ops]
    assert rounded_in == ([count * len(images) for count in lowered_in] if as_used else [1] * len(case.ops))


RULES = {
    "in one sweep": lambda x: (x, 2.0),
    "one by one: more than the hidden state differs": lambda x: (x, float(x.detach().abs().mean())),
    "is not given the output of the block before it": lambda x: (x if len(x) == 3 else x + 0.0, 2.0),
}


@pytest.mark.parametrize(
    ("message", "rule"), RULES.items(), ids=["a chain", "another value", "a later batch"]
)
def test_models_that_turn_out_to_be_something_else(message, rule, said):
    model = Row(lambda x: (x, 2.0))
    case = Case(model, [torch.randn(3, 4), torch.randn(2, 4)], helpers.squared_loss)
    model.rule = rule
    before_the_blocks = [lowered("start"), lowered("start", "layers.1.inner")]
    case.check([*before_the_blocks, *some(case.ops)])
    assert message in said()


def test_memory_decides_how_many_run_side_by_side(monkeypatch):
    case = Case(helpers.language_model("llama"), BATCHES, None)
    state = 3 * 12 * 64 * 4
    for free, expected in ((100 * state, 25), (0, 1), (None, 1)):
        monkeypatch.setattr("inc_mp_plugin.sensitivity.plan_runs.free_bytes", lambda device, free=free: free)
        with as_measured(case.model):
            assert case.runs.at_once(lambda: case.run(BATCHES[0])) == expected


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("at", [2, 9, 40])
def test_the_model_leaves_as_it_came(error, at):
    model = helpers.language_model("llama", num_hidden_layers=3)
    case, before, calls = Case(model, BATCHES, language_model_loss), helpers.state(model), []
    real = case.rounder.rounder.input

    def fails(*arguments):
        calls.append(arguments)
        if len(calls) == at:
            raise error
        return real(*arguments)

    case.rounder.input = fails
    with pytest.raises(error):
        case.together(BATCHES[0], some(case.ops))
    helpers.assert_same_state(before, helpers.state(model))
