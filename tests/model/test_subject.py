import helpers
import pytest
import torch
from torch import nn

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.model.subject import base_format, subject_in_memory


def test_base_format_is_that_of_most_parameters():
    model = helpers.language_model("llama")
    assert base_format(model) == "fp32"
    model.to(torch.bfloat16)
    model.model.norm.float()  # some models keep a norm or a router in FP32
    assert base_format(model) == "bf16"


@pytest.mark.parametrize("model", [nn.ReLU(), nn.Linear(2, 2).double()], ids=["none", "float64"])
def test_formats_that_cannot_be_a_base(model):
    with pytest.raises(InputError, match="the base format is one of float32, bfloat16, float16"):
        base_format(model)


def test_loss_functions_are_told_apart():
    """Reusing the sensitivities of another loss would give a wrong plan without a word."""

    def scaled(by):
        return lambda model, batch: helpers.squared_loss(model, batch) * by

    def identify(loss_fn):
        return subject_in_memory(nn.Linear(2, 2), [torch.ones(1, 2)], loss_fn).depends_on["loss_fn"]

    assert identify(helpers.squared_loss) == identify(helpers.squared_loss)
    twice, thrice = (lambda m, b: m(b).sum(1) * 2), (lambda m, b: m(b).sum(1) * 3)
    known = [None, helpers.squared_loss, helpers.summed_loss, twice, thrice, scaled(2), scaled(3)]
    assert len({identify(loss_fn) for loss_fn in known}) == len(known)


def test_a_model_is_known_by_its_weights_and_its_data():
    def identify(seed=0, tokens=0):
        model = helpers.language_model("llama", seed)
        return subject_in_memory(model, [{"input_ids": helpers.tokens(2, seed=tokens)}], None)

    same, other = identify().depends_on, identify(seed=1).depends_on
    assert same == identify().depends_on
    assert same["model"] != other["model"]
    assert same["data"] == other["data"] != identify(tokens=1).depends_on["data"]
