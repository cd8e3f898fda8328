"""Texts joined to samples of full length: nothing lost, nothing seen across texts."""

import json

import helpers
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from test_text_batches import shipped_batches

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.model.data.packing import packed
from inc_mp_plugin.model.data.tokens import Tokens
from inc_mp_plugin.model.losses import default_loss
from inc_mp_plugin.model.packing import check_packing


def text(place, ids):
    return Tokens(place, tuple(ids), tuple(token % 3 > 0 for token in ids))


@given(st.lists(st.lists(st.integers(0, 99), max_size=9), max_size=8), st.integers(1, 7))
def test_no_token_is_lost_or_moved(texts, length):
    """Joined end to end and cut every `length` tokens; positions count on or begin again at 0."""
    samples = list(packed([text(str(n), ids) for n, ids in enumerate(texts)], length))
    flat = [token for ids in texts for token in ids]
    whole = len(flat) // length * length
    assert [token for sample in samples for token in sample.ids] == flat[:whole]
    assert all(len(sample.ids) == len(sample.positions) == length for sample in samples)
    assert [c for sample in samples for c in sample.counts] == [token % 3 > 0 for token in flat[:whole]]
    starts = {sum(map(len, texts[:n])) for n in range(len(texts))} | set(range(0, whole, length))
    begun = [at for at in range(whole) if samples[at // length].positions[at % length] == 0]
    assert begun == sorted(start for start in starts if start < whole)
    for sample in samples:
        for before, after in zip(sample.positions, sample.positions[1:], strict=False):
            assert after in (0, before + 1)


TEXTS = [
    "import os, sys",
    "def read(path): return path",
    "x = [1, 2, 3]",
    "class A: pass",
    "print(x)",
    "y = 2",
]


def test_the_loss_of_a_joined_sample_is_that_of_its_texts_alone(tmp_path):
    """Token by token, each text run by itself through transformers."""
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    batches = shipped_batches(data=path, samples=2, pack=True, batch_size=2)
    (batch,) = batches
    assert batch.keys() == {"input_ids", "position_ids"}
    model = transformers.AutoModelForCausalLM.from_pretrained(helpers.SHIPPED).float().eval()
    for ids, positions, loss in zip(*batch.values(), default_loss(model, batch), strict=True):
        starts = [*(positions == 0).nonzero().flatten().tolist(), len(ids)]
        parts = [ids[a:b] for a, b in zip(starts, starts[1:], strict=False) if b - a > 1]
        sums = [model(input_ids=part[None], labels=part[None]).loss * (len(part) - 1) for part in parts]
        mean = torch.stack(sums).sum() / sum(len(part) - 1 for part in parts)
        assert len(parts) > 1
        assert loss.item() == pytest.approx(mean.item(), rel=1e-5)


def test_too_few_texts_are_counted_with_their_tokens(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    with pytest.raises(
        InputError, match=r"the 6 texts of .* fill 2 samples of 16 tokens, 64 are asked for; give"
    ):
        shipped_batches(data=path, samples=64, pack=True)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "phi3"])
def test_models_that_tell_joined_texts_apart(name):
    check_packing(helpers.language_model(name))


def test_a_model_that_mixes_joined_texts_is_refused():
    model = helpers.language_model("opt")
    with pytest.raises(
        InputError, match="tells joined texts apart by position_ids, and a .* mixes them; give"
    ):
        check_packing(model)
