import pytest
import torch
from torch import nn

from inc_mp_plugin.libraries.torch import evaluating
from inc_mp_plugin.model.hooks import recorded, watching, with_forward
from inc_mp_plugin.model.modules import class_names, module_of, put_module


class Doubled(nn.Module):
    """A product whose second factor is a keyword."""

    def forward(self, value, factor=1.0):
        return value * factor


def test_functions_see_calls_and_may_change_them():
    model, calls = Doubled(), []

    def before(name, args, kwargs):
        calls.append((name, args, kwargs))
        return (args[0] + 1,), {"factor": 3.0}

    def after(name, args, kwargs, output):
        calls.append((name, args, kwargs, output))
        return output + 0.5

    with watching({"a": model}, before, after):
        assert model(1.0, factor=2.0) == 6.5
    assert calls == [("a", (1.0,), {"factor": 2.0}), ("a", (2.0,), {"factor": 3.0}, 6.0)]
    assert model(1.0, factor=2.0) == 2.0


def test_hooks_come_off_after_an_error():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with (
        pytest.raises(KeyboardInterrupt),
        watching({"0": model[0], "1": model[1]}, lambda *_: None, lambda *_: None),
    ):
        raise KeyboardInterrupt
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_every_module_gets_its_own_mode_back():
    model = nn.Sequential(nn.Dropout(), nn.Linear(2, 2))
    model[1].eval()
    with pytest.raises(KeyboardInterrupt), evaluating(model):
        assert not any(module.training for module in model.modules())
        raise KeyboardInterrupt
    assert [module.training for module in model.modules()] == [True, True, False]


def test_modules_by_name():
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2)), nn.ReLU())
    assert class_names(model) == {"0": "Sequential", "0.0": "Linear", "1": "ReLU"}
    put_module(model, "0.0", nn.Identity())
    assert torch.equal(module_of(model, "0")(torch.ones(1)), torch.ones(1))


@pytest.mark.parametrize("own", [None, lambda x: x - 1])
def test_a_forward_comes_back_as_it_was(own):
    """That of the class, or the one that lay on the module."""
    model, x = nn.ReLU(), torch.tensor([2.0])
    if own is not None:
        model.forward = own
    before = dict(vars(model))
    with pytest.raises(KeyboardInterrupt), with_forward(model, lambda x: 5 * x):
        assert model(x) == 10
        raise KeyboardInterrupt
    assert vars(model) == before
    assert model(x) == (2 if own is None else 1)


def test_recorded_outputs_are_those_of_the_whole_model():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    x = torch.ones(1, 2)
    with recorded(model) as outputs:
        model(x)
        model[0](x)
        second = model(2 * x)
    model(x)
    assert len(outputs) == 2
    assert outputs[1] is second
    assert torch.equal(outputs[0], model(x))


def test_a_recorder_leaves_no_hook_behind_an_error():
    model = nn.Linear(2, 2)
    with pytest.raises(KeyboardInterrupt), recorded(model):
        raise KeyboardInterrupt
    assert not model._forward_hooks
