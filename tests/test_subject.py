import helpers
import pytest
import torch
from torch import nn

from inc_mp_plugin.errors import InputError
from inc_mp_plugin.subject import base_format, subject_in_memory


def test_base_format_is_that_of_most_parameters():
    model = helpers.language_model("llama")
    assert base_format(model) == "fp32"
    model.to(torch.bfloat16)
    model.model.norm.float()  # some models keep a norm or a router in FP32
    assert base_format(model) == "bf16"


@pytest.mark.parametrize("model", [nn.ReLU(), nn.Linear(2, 2).double()], ids=["none", "float64"])
def test_formats_that_cannot_be_a_base(model):
    with pytest.raises(InputError, match="must be one of float32, bfloat16, float16"):
        base_format(model)


def test_a_model_is_known_by_its_weights_and_its_data():
    def identify(seed=0, tokens=0):
        model = helpers.language_model("llama", seed)
        return subject_in_memory(model, [{"input_ids": helpers.tokens(2, seed=tokens)}], None)

    same, other = identify().depends_on, identify(seed=1).depends_on
    assert same == identify().depends_on
    assert same["model"] != other["model"]
    assert same["data"] == other["data"] != identify(tokens=1).depends_on["data"]
