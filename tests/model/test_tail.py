"""The part of a language model behind its blocks, run on some tokens at a time."""

import helpers
import pytest
import torch
from torch import nn

from inc_mp_plugin.graph.capture import capture
from inc_mp_plugin.model import tail as module
from inc_mp_plugin.model.modes import as_measured
from inc_mp_plugin.model.tail import tail_of


def batch(**more):
    ids = helpers.tokens(2)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **more}


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_logits_in_parts_are_the_models(name, monkeypatch):
    model = helpers.language_model(name)
    data = batch()
    with torch.no_grad():
        whole = model(**data).logits
    with as_measured(model), torch.no_grad():
        tail = tail_of(model, capture(model, data), data)
        assert not tail.serves(data)
        monkeypatch.setattr(module, "LOGITS_AT_ONCE", 2 * whole.shape[-1] * 5)
        assert tail.serves(data)
        parts = tail.parts(data)
        assert [part.stop - part.start for part in parts] == [5, 5, 2]
        state = tail.state(data)
        logits = torch.cat([tail.logits(data, state[:, part]) for part in parts], dim=1)
    assert tail.op == "lm_head"
    torch.testing.assert_close(logits, whole, rtol=1e-5, atol=1e-6)
    assert "forward" not in vars(model.model.layers[-1])


class Averaged(nn.Module):
    """A language model whose logits of a token depend on the other tokens, behind the blocks, too."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.config = inner, inner.config

    def forward(self, input_ids, attention_mask=None):
        output = self.inner(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        output.logits = output.logits - output.logits.mean(dim=1, keepdim=True)
        return output


def test_no_tail_where_the_code_behind_the_blocks_asks_for_all_tokens():
    model = helpers.language_model("gpt2")
    with as_measured(model):
        assert tail_of(model, capture(model, batch()), batch()) is None
    assert "forward" not in vars(model.transformer.h[-1])


class Asking(Averaged):
    """A language model whose code behind the blocks asks for all tokens, in one of several ways."""

    def __init__(self, inner, ask):
        super().__init__(inner)
        self.ask = ask

    def forward(self, input_ids, attention_mask=None):
        output = self.inner(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        self.ask(output.logits, input_ids.shape[1])
        return output


def checks(logits, tokens):
    if logits.shape[1] != tokens:
        message = "logits and tokens are not as many"
        raise ValueError(message)


WAYS = {
    "a shape": lambda logits, tokens: logits.view(-1, tokens, logits.shape[-1]),
    "a token": lambda logits, tokens: logits[:, tokens - 1],
    "a check": checks,
}


@pytest.mark.parametrize("ask", WAYS.values(), ids=WAYS)
def test_no_tail_where_all_tokens_are_asked_for(ask):
    model = Asking(helpers.language_model("llama"), ask)
    with as_measured(model):
        assert tail_of(model, capture(model, batch()), batch()) is None
    assert "forward" not in vars(model.inner.model.layers[-1])


def test_other_errors_are_the_models():
    model = Asking(helpers.language_model("llama"), lambda logits, tokens: None)
    graph = capture(model, batch())
    model.ask = lambda logits, tokens: {12: "all"}[logits.shape[1]]
    with as_measured(model), pytest.raises(KeyError):
        tail_of(model, graph, batch())


def test_no_tail_where_tokens_mix_behind_the_blocks():
    model = Averaged(helpers.language_model("llama"))
    with as_measured(model):
        assert tail_of(model, capture(model, batch()), batch()) is None


@pytest.mark.parametrize("data", [batch(pixel_values=torch.zeros(2, 3)), torch.zeros(2, 3), (1, 2)], ids=str)
def test_no_tail_of_other_batches(data):
    model = helpers.language_model("llama")
    with as_measured(model):
        assert tail_of(model, capture(model, batch()), data) is None


def test_no_tail_without_blocks():
    model = helpers.language_model("llama", num_hidden_layers=1)
    with as_measured(model):
        assert tail_of(model, capture(model, batch()), batch()) is None
