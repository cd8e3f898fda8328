"""JSON lines: what they may hold, and what is refused with its number."""

import gzip
import json

import helpers
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.model.data.samples import Completion, Conversation, read_samples
from inc_mp_plugin.model.data.source import DataSource, Excerpt

SEPARATORS = "\u2028\u2029\u0085\v\f\x1c\x1d\x1e"


def read(path, samples, skip=0, **source):
    """The samples of a file, by what follows its name in their places."""
    read = read_samples(Excerpt(DataSource(path, **source), samples, skip))
    return {place.removeprefix(f"{path}, "): sample for place, sample in read.items()}


def written(tmp_path, content):
    path = tmp_path / "data.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@given(st.lists(st.text(st.characters(codec="utf-8")), min_size=1, max_size=5), st.booleans(), st.booleans())
def test_any_text_is_read_back(tmp_path_factory, texts, ascii_only, windows):
    """Written by json itself, with or without escapes, on either system."""
    end = "\r\n" if windows else "\n"
    content = "".join(json.dumps({"text": text}, ensure_ascii=ascii_only) + end for text in texts)
    path = written(tmp_path_factory.mktemp("data"), content)
    assert list(read(path, len(texts)).values()) == texts


def test_separators_of_unicode_do_not_end_a_line(tmp_path):
    # Those of ASCII must be escaped in JSON; between the tokens of a line they are no JSON.
    text = "".join(f"a{separator}b" for separator in SEPARATORS)
    path = written(tmp_path, json.dumps({"text": text}, ensure_ascii=False) + "\n")
    assert read(path, 1) == {"line 1": text}


def test_numbers_are_those_of_an_editor(tmp_path):
    path = written(tmp_path, '\ufeff\n{"text": "one"}\n\n  \n{"text": "two"}\n{"text": 3}\n')
    assert read(path, 2) == {"line 2": "one", "line 5": "two"}
    assert read(path, 1, skip=1) == {"line 5": "two"}
    with pytest.raises(InputError, match="line 6: not an object with a"):
        read(path, 1, skip=2)


GOOD = b'{"text": "good"}\n'
# Content of a second line, and words of the error.
DAMAGED = [
    (b"{", "not JSON"),
    (b"nothing", "not JSON"),
    (b'{"text": "open', "not JSON"),
    (b"{'text': 'quotes'}", "not JSON"),
    (b'{"text": "two"} {"text": "three"}', "not JSON"),
    (b'{"text": "comma"},', "not JSON"),
    (b'{"text": "a\tb"}', "not JSON"),
    (b'{"text": "a\\xb"}', "not JSON"),
    (b'{"text": "\\ud8"}', "not JSON"),
    (b"[" * 100_000, "not JSON"),
    (b'\x0c{"text": "a"}', "not JSON"),
    (b"[]", "not an object"),
    (b'["text"]', "not an object"),
    (b'"text"', "not an object"),
    (b"3", "not an object"),
    (b"null", "not an object"),
    (b"NaN", "not an object"),
    (b"{}", "not an object"),
    (b'{"Text": "a"}', "not an object"),
    (b'{"prompt": "a"}', "not an object"),
    (b'{"text": null}', "not an object"),
    (b'{"text": 3}', "not an object"),
    (b'{"text": ["a"]}', "not an object"),
    (b'{"text": {"text": "a"}}', "not an object"),
    (b'{"text": "\\ud800"}', r"holds \ud800, half of a character"),
    (b'{"text": "a\\udfffb"}', r"holds \udfff, half of a character"),
    (b'{"text": "\xff"}', "byte 0xff is not UTF-8"),
    (b'{"text": "gr\xfc\xdf"}', "byte 0xfc is not UTF-8"),
    (b'{"text": "\xed\xa0\x80"}', "byte 0xed is not UTF-8"),
    ('{"text": "a"}'.encode("utf-16"), "is not UTF-8"),
    ('{"text": "a"}'.encode("utf-16-le"), "not JSON"),
    (b"\x1f\x8b\x08\x00", "byte 0x8b is not UTF-8"),
]


@pytest.mark.parametrize(("line", "text"), DAMAGED)
def test_a_damaged_line_is_named(tmp_path, line, text):
    path = written(tmp_path, GOOD + line + b"\n" + GOOD)
    with pytest.raises(InputError) as raised:
        read(path, 3)
    assert str(raised.value).startswith(f"{path}, line 2: ")
    assert text in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf"])
def test_an_empty_file(tmp_path, content):
    with pytest.raises(InputError, match="holds 0 samples, 1 are asked for"):
        read(written(tmp_path, content), 1)


def test_a_folder_and_a_missing_file(tmp_path):
    with pytest.raises(InputError, match="cannot be loaded: "):
        read(tmp_path, 1)
    with pytest.raises(InputError, match="does not exist"):
        read(tmp_path / "nothing.jsonl", 1)


@pytest.mark.parametrize("line", [b'{"text": "\\ud800"}\n', b'{"text": "\xff"}\n', b'{"text": 3}\n'])
def test_the_command_ends_with_one_line(project, tmp_path, line):
    path = written(tmp_path, GOOD * 3 + line + GOOD * 60)
    result = helpers.call(
        "tune", project / "recipe.yaml", f"calibration.data={path}", "--out", tmp_path / "out"
    )
    assert result.exit_code == 2
    assert helpers.told(result).count("Error: ") == 1
    assert "line 4: " in helpers.told(result)


def test_a_compressed_file(tmp_path):
    path = tmp_path / "data.jsonl.gz"
    path.write_bytes(gzip.compress(b'\xef\xbb\xbf{"text": "one"}\r\n\r\n{"text": "two"}'))
    assert read(path, 2) == {"line 1": "one", "line 3": "two"}
    for content in (path.read_bytes()[:-9], b'{"text": "one"}'):
        path.write_bytes(content)
        with pytest.raises(InputError, match="is not gzip, or cut short .*; compress it again"):
            read(path, 3)


def test_conversations_and_completions(tmp_path):
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    lines = [{"messages": turns}, {"prompt": "2 + 2 = ", "completion": "4", "id": 7}]
    path = written(tmp_path, "\n".join(map(json.dumps, lines)))
    turn = Conversation((("user", ("Hi",)), ("assistant", ("Hello",))))
    assert read(path, 2) == {"line 1": turn, "line 2": Completion("2 + 2 = ", "4")}


@pytest.mark.parametrize(
    "line",
    [
        {"messages": []},
        {"messages": "Hi"},
        {"messages": ["Hi"]},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
        {"prompt": "2 + 2 = "},
        {"prompt": 2, "completion": "4"},
    ],
    ids=str,
)
def test_what_is_no_sample_is_named_by_its_line(tmp_path, line):
    with pytest.raises(
        InputError,
        match="data.jsonl, line 1: (not an object with|a message is not|a part of a message is neither)",
    ):
        read(written(tmp_path, json.dumps(line)), 1)
