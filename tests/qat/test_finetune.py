"""Fine-tuning: one step by hand, determinism, what is decayed, recovery, and what stops it."""

import math

import pytest
import torch
from torch import nn

from inc_mp_plugin.core.errors import InputError, NonFiniteError
from inc_mp_plugin.qat.finetune import FineTuning, finetune
from inc_mp_plugin.qat.layers import quantized, rounded_ops


def squared_error(model, batch):
    inputs, expected = batch
    return (model(inputs) - expected).square().mean(dim=1)


def batches(number, seed=0):
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randn(6, 3, generator=torch.Generator().manual_seed(9))
    inputs = [torch.randn(16, 6, generator=generator) for _ in range(number)]
    return [(x, x @ truth) for x in inputs]


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def test_steps_by_hand():
    """SGD with momentum 0.9 and weight decay on weights alone, the rate on half a cosine."""
    line = nn.Linear(1, 1)
    with torch.no_grad():
        line.weight.fill_(1.0)
        line.bias.fill_(0.0)
    batch = (torch.tensor([[2.0]]), torch.tensor([[1.0]]))
    result = finetune(line, [batch, batch], squared_error, FineTuning(0.1, weight_decay=0.5))
    weight, bias, losses, speed = 1.0, 0.0, [], [0.0, 0.0]
    for rate in (0.1, 0.1 * (1 + math.cos(math.pi / 2)) / 2):
        error = 2.0 * weight + bias - 1.0
        losses.append(error**2)
        speed[0] = 0.9 * speed[0] + 4.0 * error + 0.5 * weight
        speed[1] = 0.9 * speed[1] + 2.0 * error
        weight, bias = weight - rate * speed[0], bias - rate * speed[1]
    assert result.losses == pytest.approx(losses)
    assert float(result.model.weight) == pytest.approx(weight)
    assert float(result.model.bias) == pytest.approx(bias)
    assert (float(line.weight), float(line.bias)) == (1.0, 0.0)


def test_the_same_call_gives_the_same_model():
    start = nn.Sequential(model(), nn.Dropout(0.5))
    first, second = (finetune(start, batches(5), squared_error, FineTuning(0.05, seed=3)) for _ in range(2))
    other = finetune(start, batches(5), squared_error, FineTuning(0.05, seed=4))
    assert first.losses == second.losses != other.losses
    states = (first.model.state_dict().values(), second.model.state_dict().values())
    assert all(torch.equal(*pair) for pair in zip(*states, strict=True))


def test_random_numbers_of_the_caller_go_on():
    start = model()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    finetune(start, batches(1), squared_error, FineTuning(0.01))
    assert torch.equal(torch.rand(3), expected)


def test_a_rounded_model_recovers():
    """Two-bit weights and inputs lose much at first; training, steps included, gets most of it back."""
    full = finetune(model(), batches(300), squared_error, FineTuning(0.05)).model
    formats = {"0": "int8", "3": "int4"}
    start = quantized(full, formats, [x for x, _ in batches(3, 1)])
    before = {name: value.clone() for name, value in start.state_dict().items()}
    result = finetune(start, batches(200), squared_error, FineTuning(0.02))
    assert all(torch.equal(before[name], value) for name, value in start.state_dict().items())
    heldout = batches(20, 2)
    with torch.no_grad():
        lost, kept = (
            sum(float(squared_error(model, batch).mean()) for batch in heldout)
            for model in (start.eval(), result.model)
        )
    assert kept < 0.7 * lost
    old, new = rounded_ops(start)["3"], rounded_ops(result.model)["3"]
    assert float(old.weight_quantizer.step) != float(new.weight_quantizer.step)
    assert not result.model.training and len(result.losses) == 200 and result.seconds > 0


def test_steps_and_numbers_per_channel_are_not_decayed():
    """With nothing to learn, only weights shrink; steps and batch norms stay."""
    start = quantized(model(), {"0": "int4", "3": "int4"}, [batches(1)[0][0]], per_channel=True)

    def nothing(network, batch):
        return 0.0 * squared_error(network, batch)

    made = finetune(start, batches(3), nothing, FineTuning(0.1, weight_decay=0.5)).model
    now = dict(made.named_parameters())
    for name, value in start.named_parameters():
        assert torch.equal(value, now[name]) != name.endswith(".op.weight"), name


@pytest.mark.parametrize(
    ("settings", "said"),
    {
        "rate": ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        "infinite rate": ({"learning_rate": math.inf}, "learning_rate is inf"),
        "momentum": ({"learning_rate": 0.1, "momentum": 1.0}, "momentum is 1.0"),
        "decay": ({"learning_rate": 0.1, "weight_decay": -1.0}, "weight_decay -1.0"),
    }.values(),
    ids=["rate", "infinite rate", "momentum", "decay"],
)
def test_settings_out_of_range_are_refused(settings, said):
    with pytest.raises(InputError, match=said):
        FineTuning(**settings)


def test_nothing_to_train_on():
    with pytest.raises(InputError, match="no batch"):
        finetune(model(), [], squared_error, FineTuning(0.1))


def test_a_loss_that_diverges_stops_training():
    with pytest.raises(
        NonFiniteError, match=r"update \d+ of 50: training has diverged at a learning rate of 1e\+2"
    ):
        finetune(nn.Linear(6, 3), batches(50), squared_error, FineTuning(1e20))


def test_an_update_halves_or_doubles_a_step_at_the_most():
    start = quantized(model(), {"0": "int8", "3": "int2"}, [batches(1)[0][0]])
    made = finetune(start, batches(1), squared_error, FineTuning(50.0)).model
    old, new = rounded_ops(start), rounded_ops(made)
    factors = [
        float(getattr(new[name], part).step / getattr(old[name], part).step)
        for name in old
        for part in ("input_quantizer", "weight_quantizer")
    ]
    assert all(factor == pytest.approx(0.5) or factor == pytest.approx(2.0) for factor in factors)


def test_a_step_that_is_not_finite_is_named():
    def infinite_slope(network, batch):
        return (0.0 * squared_error(network, batch)).sqrt()

    start = quantized(model(), {"3": "int2"}, [batches(1)[0][0]])
    with pytest.raises(NonFiniteError, match="a step of the (input|weight) of op '3' is nan after 1 updates"):
        finetune(start, batches(1), infinite_slope, FineTuning(0.1))
