"""Samples as batches of tokens: cut, padded, and checked against the model."""

import helpers
import pytest
import transformers

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.model.data.load import load_batches
from inc_mp_plugin.model.data.samples import Conversation
from inc_mp_plugin.model.data.segments import Segment, segments
from inc_mp_plugin.model.data.shape import BatchShape
from inc_mp_plugin.model.data.source import DataSource, Excerpt
from inc_mp_plugin.model.data.tokens import tokenize
from inc_mp_plugin.model.loading import load_config


def shipped_batches(**changes):
    data = changes.pop("data", helpers.SHIPPED / "calibration.jsonl")
    config = load_config(str(helpers.SHIPPED), changes.pop("config", {}), trust_remote_code=False)
    samples = changes.pop("samples", 3)
    shape = BatchShape(**{"sequence_length": 16, "batch_size": 2, **changes})
    return load_batches(
        config, str(helpers.SHIPPED), Excerpt(DataSource(data), samples), shape, trust_remote_code=False
    )


def ids(tokenizer, text, length):
    """Tokens of a text, or of a rendered conversation."""
    parts = [Segment(text, True)] if isinstance(text, str) else segments(tokenizer, "line 1", text, "all")
    return list(tokenize(tokenizer, "line 1", parts, length).ids)


def test_tokens_that_the_model_does_not_know():
    with pytest.raises(InputError, match="gives token .*, but the model knows 20 tokens; give its own"):
        shipped_batches(config={"vocab_size": 20})


def test_batches_are_cut_and_sized():
    shapes = [tuple(batch["input_ids"].shape) for batch in shipped_batches()]
    assert shapes == [(2, 16), (1, 16)]


def test_short_samples_are_padded_and_marked(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "def f(x):"}\n{"text": "import os, sys, json, pathlib"}\n')
    (batch,) = shipped_batches(data=path, samples=2)
    lengths = batch["attention_mask"].sum(dim=1).tolist()
    assert lengths[0] < lengths[1] == batch["input_ids"].shape[1]
    assert batch["attention_mask"][0].tolist() == sorted(batch["attention_mask"][0].tolist())[::-1]


def test_sequences_longer_than_the_context(tmp_path):
    with pytest.raises(InputError, match="sequence_length is 4096, but the model's context is 256"):
        shipped_batches(sequence_length=4096)
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": ""}\n')
    with pytest.raises(
        InputError, match=r"1 of 1 samples .* have fewer than two tokens, the first at .*line 1; leave"
    ):
        shipped_batches(data=path, samples=1)


def shipped_tokenizer(begins):
    """The shipped tokenizer, with a token that begins texts; it is put before each, or not."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = transformers.AutoTokenizer.from_pretrained(helpers.SHIPPED, bos_token="<s>")
    if begins:
        special = [("<s>", tokenizer.bos_token_id)]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<s> $A", special_tokens=special
        )
    return tokenizer


@pytest.mark.parametrize("begins", [True, False])
@pytest.mark.parametrize("length", [3, 50])
def test_a_rendered_text_begins_once(begins, length):
    tokenizer, text = shipped_tokenizer(begins), "def read(path): return path"
    plain = tokenizer(text, add_special_tokens=False)["input_ids"]
    rendered = ids(tokenizer, f"<s>{text}", length)
    assert rendered == [tokenizer.bos_token_id, *plain][:length]
    assert ids(tokenizer, text, length) == ([tokenizer.bos_token_id] * begins + plain)[:length]


TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def chat(*roles):
    return Conversation(tuple((role, (f"{role} says",)) for role in roles))


def test_a_conversation_goes_through_the_chat_template():
    tokenizer = shipped_tokenizer(begins=False)
    tokenizer.chat_template = TEMPLATE
    answered = tokenizer("<user>user says<assistant>assistant says")["input_ids"]
    assert ids(tokenizer, chat("user", "assistant"), 100) == answered
    asked = tokenizer("<user>user says<assistant>")["input_ids"]
    assert ids(tokenizer, chat("user"), 100) == asked


def test_a_conversation_that_no_template_takes():
    tokenizer = shipped_tokenizer(begins=False)
    with pytest.raises(InputError, match="has no chat template; give"):
        ids(tokenizer, chat("user"), 100)
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(InputError, match="refuses the conversation: roles must alternate"):
        ids(tokenizer, chat("user", "user"), 100)
