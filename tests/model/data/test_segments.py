"""Answers: the tokens that a loss of answers is of, against texts cut by hand."""

import helpers
import pytest
import torch
import transformers
from test_text_batches import TEMPLATE, chat, shipped_batches, shipped_tokenizer

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.model.data.samples import Completion, Conversation
from inc_mp_plugin.model.data.segments import Segment, segments
from inc_mp_plugin.model.data.tokens import tokenize


def counted(tokenizer, parts, length=None):
    """The text of the tokens that count."""
    tokens = tokenize(tokenizer, "line 1", parts, length)
    return tokenizer.decode(
        [token for token, counts in zip(tokens.ids, tokens.counts, strict=True) if counts]
    )


@pytest.mark.parametrize("begins", [True, False])
def test_the_answers_of_a_conversation(begins):
    tokenizer = shipped_tokenizer(begins)
    tokenizer.chat_template = TEMPLATE
    parts = segments(tokenizer, "line 1", chat("system", "user", "assistant", "user", "assistant"), "answers")
    said = ["<system>system says<user>user says<assistant>", "assistant says"]
    assert [part.text for part in parts] == [*said, "<user>user says<assistant>", "assistant says", ""]
    assert [part.counts for part in parts] == [False, True, False, True, False]
    assert counted(tokenizer, parts) == "assistant says" * 2
    whole = segments(tokenizer, "line 1", chat("user", "assistant"), "all")
    assert whole == [Segment("<user>user says<assistant>assistant says", True)]


def test_the_answer_to_a_prompt():
    tokenizer = shipped_tokenizer(begins=True)
    sample = Completion("def read(path):", " return path")
    assert counted(tokenizer, segments(tokenizer, "line 1", sample, "answers")) == " return path"
    everything = segments(tokenizer, "line 1", sample, "all")
    assert counted(tokenizer, everything) == "<s>def read(path): return path"


FORGETFUL = (
    "{% for m in messages %}{% if loop.last or m.role != 'assistant' %}<{{ m.role }}>{{ m.content }}"
    "{% endif %}{% endfor %}"
)


def test_what_has_no_answer_is_told():
    tokenizer = shipped_tokenizer(begins=False)
    with pytest.raises(InputError, match=r"line 1: a plain text has no answer; give messages, prompt and"):
        segments(tokenizer, "line 1", "text", "answers")
    tokenizer.chat_template = TEMPLATE
    with pytest.raises(InputError, match=r"line 1: the conversation has no message of the assistant"):
        segments(tokenizer, "line 1", chat("user"), "answers")
    tokenizer.chat_template = FORGETFUL
    with pytest.raises(InputError, match=r"line 1: the chat template does not render message after message"):
        segments(tokenizer, "line 1", chat("user", "assistant", "user", "assistant"), "answers")


def test_a_slow_tokenizer_does_not_tell_where_its_tokens_lie():
    tokenizer = shipped_tokenizer(begins=False)
    slow = type("Slow", (), {"bos_token": None, "is_fast": False, "name_or_path": "slow"})()
    with pytest.raises(InputError, match=r"'slow' is a slow one; give labels: all"):
        tokenize(slow, "line 1", [Segment("a", False), Segment("b", True)], 8)
    assert tokenizer.is_fast


def test_labels_of_answers_and_a_loss_of_them(tmp_path):
    """The loss of answers is that of transformers on the same labels."""
    from inc_mp_plugin.model.losses import default_loss

    path = tmp_path / "data.jsonl"
    lines = [
        '{"prompt": "def read(path):", "completion": " return path"}',
        '{"prompt": "a", "completion": " = 1"}',
    ]
    path.write_text("\n".join(lines))
    (batch,) = shipped_batches(data=path, samples=2, labels="answers")
    marked = batch["labels"] != -100
    assert torch.equal(batch["labels"][marked], batch["input_ids"][marked])
    tokenizer = transformers.AutoTokenizer.from_pretrained(helpers.SHIPPED)
    assert tokenizer.decode(batch["labels"][0][marked[0]]) == " return path"
    model = transformers.AutoModelForCausalLM.from_pretrained(helpers.SHIPPED).float().eval()
    for row, loss in enumerate(default_loss(model, batch)):
        alone = {key: value[row : row + 1] for key, value in batch.items()}
        assert loss.item() == pytest.approx(model(**alone).loss.item(), rel=1e-5)


def test_answers_that_are_cut_off_are_counted(tmp_path):
    path = tmp_path / "data.jsonl"
    prompt = "def read(path): return path, path, path, path"
    path.write_text("\n".join(f'{{"prompt": "{n} {prompt}", "completion": " end"}}' for n in range(3)))
    with pytest.raises(
        InputError, match=r"3 of 3 samples of .* have no token of an answer within 4 tokens, the first"
    ):
        shipped_batches(data=path, samples=3, labels="answers", sequence_length=4)


def test_samples_that_are_all_the_same_are_refused_and_repeats_told(tmp_path, caplog):
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "import os, sys"}\n' * 3 + '{"text": "def read(path):"}\n')
    with pytest.raises(
        InputError, match=r"all 3 samples of .* are the same within 16 tokens; give samples that"
    ):
        shipped_batches(data=path, samples=3)
    shipped_batches(data=path, samples=4)
    assert "2 of 4 samples of" in caplog.text
    assert "repeat another one within 16 tokens" in caplog.text


def test_conversations_know_their_images(tmp_path):
    picture = tmp_path / "cat.png"
    assert Conversation((("user", ("see", picture)), ("assistant", ("a cat",)))).images == (picture,)


PARTS = (
    "{% for m in messages %}<{{ m.role }}>{% for part in m.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% else %}<image>{% endif %}{% endfor %}{% endfor %}"
)


def test_templates_that_know_parts_alone_leave_no_text_out():
    """As those of models that read images, which print nothing for a content that is a text."""
    tokenizer = shipped_tokenizer(begins=False)
    tokenizer.chat_template = PARTS
    parts = segments(tokenizer, "line 1", chat("user", "assistant"), "answers")
    # Without the start of an answer in the template, it is part of the answer.
    assert [part.text for part in parts] == ["<user>user says", "<assistant>assistant says", ""]
    tokenizer.chat_template = "no messages"
    with pytest.raises(
        InputError, match="line 1: the chat template refuses the conversation: it leaves out all"
    ):
        segments(tokenizer, "line 1", chat("user", "assistant"), "all")


def test_answers_within_a_prompt_are_asked():
    tokenizer = shipped_tokenizer(begins=False)
    tokenizer.chat_template = TEMPLATE
    turns = chat("user", "assistant", "user", "assistant").messages
    parts = segments(tokenizer, "line 1", Conversation(turns, 3), "answers")
    asked = "<user>user says<assistant>assistant says<user>user says<assistant>"
    assert [(part.text, part.counts) for part in parts[:2]] == [(asked, False), ("assistant says", True)]


def test_a_rendered_text_gets_no_special_tokens():
    tokenizer = shipped_tokenizer(begins=True)
    tokenizer.chat_template = TEMPLATE
    parts = segments(tokenizer, "line 1", chat("user"), "all")
    assert tokenize(tokenizer, "line 1", parts, 50, rendered=True).ids[0] != tokenizer.bos_token_id
    assert tokenize(tokenizer, "line 1", parts, 50).ids[0] == tokenizer.bos_token_id
