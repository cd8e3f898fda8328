"""Modules whose weight's dtype the model's code reads: INC would make FP8 of it."""

import torch
import transformers
from torch import nn

import inc_mp_plugin as mp
from inc_mp_plugin.graph.weight_dtypes import modules_cast_to


class Inner(nn.Module):
    """A layer that its owner casts to, and another one."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.second(self.first(x.to(self.first.weight.dtype)))


class Outer(nn.Module):
    """Reads the dtype of a layer two floors below, and of one that there is not."""

    def __init__(self):
        super().__init__()
        self.block = nn.ModuleDict({"inner": Inner()})
        self.last = nn.Linear(4, 4)

    def forward(self, x):
        dtype = self.last.weight.dtype
        return self.last(self.block["inner"](x).to(dtype))

    def unused(self):
        return self.absent.weight.dtype


def test_layers_are_named_from_the_top():
    assert modules_cast_to(Outer()) == {"block.inner.first", "last"}
    graph = mp.capture(Outer(), torch.zeros(2, 4))
    assert [op.name for op in graph.ops] == ["block.inner.second"]
    assert {u.name for u in graph.unsupported} == {"block.inner.first", "last"}
    assert "casts its input to the dtype of its weight" in graph.unsupported[0].reason


def test_the_last_layer_of_a_t5_block_stays():
    config = transformers.T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=8)
    with torch.device("meta"):
        model = transformers.T5ForConditionalGeneration(config)
    assert modules_cast_to(model) == {
        f"{side}.block.0.layer.{k}.DenseReluDense.wo" for side, k in (("encoder", 1), ("decoder", 2))
    }
