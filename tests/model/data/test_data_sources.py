"""Samples of Parquet, CSV, text, folders and saved datasets, against what was written."""

import json

import datasets
import pytest

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.model.data.samples import Completion, Conversation, Labelled, read_samples
from inc_mp_plugin.model.data.source import DataSource, Excerpt, may_be_on_a_hub

TEXTS = ["first text", "second\ntext", "third"]
TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def read(path, samples=3, skip=0, **source):
    return list(read_samples(Excerpt(DataSource(path, **source), samples, skip)).values())


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """The same texts in files and folders of every kind."""
    folder = tmp_path_factory.mktemp("places")
    data = datasets.Dataset.from_dict({"text": TEXTS, "id": [1, 2, 3]})
    data.to_parquet(folder / "data.parquet")
    data.to_csv(folder / "data.csv", index=False)
    data.to_csv(folder / "data.tsv", index=False, sep="\t")
    data.to_json(folder / "data.jsonl.gz", compression="gzip")
    data.save_to_disk(folder / "saved")
    (folder / "published").mkdir()
    data.to_parquet(folder / "published" / "train-00000-of-00001.parquet")
    return folder


@pytest.mark.parametrize(
    "name", ["data.parquet", "data.csv", "data.tsv", "data.jsonl.gz", "saved", "published"]
)
def test_the_same_texts_come_from_every_place(places, name):
    assert read(places / name) == TEXTS
    assert read(places / name, 1, skip=2) == TEXTS[2:]


def test_lines_of_a_text_file_are_texts_and_empty_ones_are_passed_over(tmp_path):
    path = tmp_path / "data.txt"
    path.write_text("first\n\n  \nsecond\n")
    assert read(path, 2) == ["first", "second"]


def test_columns_of_texts_and_of_messages(tmp_path):
    rows = [{"article": "a", "chat": TURNS, "text": None}, {"article": None, "chat": TURNS, "text": "b"}]
    path = tmp_path / "data.parquet"
    datasets.Dataset.from_list(rows).to_parquet(path)
    assert read(path, 1) == ["b"]
    assert read(path, 1, column="article") == ["a"]
    assert read(path, 1, column="chat") == [Conversation((("user", ("Hi",)), ("assistant", ("Hello",))))]
    with pytest.raises(InputError, match=r"row 1: no column 'body'; it has article, chat, text$"):
        read(path, 1, column="body")


def test_a_column_of_texts_beside_labels(tmp_path):
    path = tmp_path / "data.jsonl"
    rows = [{"sentence": "a", "label": 1}, {"text": "b", "label": [[0, 5, "ORG"]]}, {"sentence": None}]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert read(path, 1, column="sentence") == [Labelled("a", 1)]
    with pytest.raises(
        InputError, match="line 3: column 'sentence' holds None; it must hold a text, or messages"
    ):
        path.write_text("\n".join(map(json.dumps, [rows[0], rows[0], rows[2]])))
        read(path, 3, column="sentence")
    path.write_text(json.dumps(rows[1]))
    assert read(path, 1) == ["b"]


def test_a_row_without_texts_names_its_columns(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("question,response\nWhy?,Because\n")
    with pytest.raises(InputError, match=r'row 1: not an object with a "text" but question, response; give'):
        read(path, 1)


def test_prompts_and_completions_of_messages_are_conversations(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"prompt": TURNS[:1], "completion": TURNS[1:]}))
    assert read(path, 1) == [Conversation((("user", ("Hi",)), ("assistant", ("Hello",))), prompt=1)]
    path.write_text(json.dumps({"prompt": "Hi", "completion": " Hello"}))
    assert read(path, 1) == [Completion("Hi", " Hello")]


def test_splits_are_named_or_there_is_one(tmp_path):
    parts = {"train": TEXTS[:2], "test": TEXTS[2:]}
    both = datasets.DatasetDict({name: datasets.Dataset.from_dict({"text": t}) for name, t in parts.items()})
    both.save_to_disk(tmp_path / "saved")
    assert read(tmp_path / "saved", 1, split="test") == TEXTS[2:]
    with pytest.raises(
        InputError, match=r"split is not given, and the dataset .* has train, test; give one of"
    ):
        read(tmp_path / "saved", 1)
    with pytest.raises(InputError, match=r"split is 'dev', and the dataset .* has train, test; give one of"):
        read(tmp_path / "saved", 1, split="dev")
    path = tmp_path / "data.csv"
    path.write_text("text\na\n")
    with pytest.raises(InputError, match=r"split is 'train', but .*data.csv is a file; leave split out"):
        read(path, 1, split="train")


def test_subsets_are_named(tmp_path):
    """A folder with the card of a published dataset that has two subsets."""
    for name in ("news", "code"):
        (tmp_path / name).mkdir()
        datasets.Dataset.from_dict({"text": [name]}).to_parquet(tmp_path / name / "data.parquet")
    configs = "".join(f"- config_name: {n}\n  data_files: {n}/data.parquet\n" for n in ("news", "code"))
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    assert read(tmp_path, 1, subset="code") == ["code"]
    with pytest.raises(
        InputError, match=r"has several subsets; give subset: one of (news, code|code, news)$"
    ):
        read(tmp_path, 1)


@pytest.mark.parametrize("name", ["data.parquet", "data.csv"])
def test_damaged_files_are_one_line(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"\x00\xff\x00 no such thing")
    with pytest.raises(InputError, match=r"the dataset '.*' cannot be loaded: ") as raised:
        read(path, 1)
    assert "\n" not in str(raised.value)


def test_too_few_samples_are_counted(places):
    with pytest.raises(InputError, match=r"data.parquet holds 3 samples, 5 are asked for; give more"):
        read(places / "data.parquet", 2, skip=3)


@pytest.mark.parametrize(
    ("name", "may_be"),
    [
        ("Salesforce/wikitext", True),
        ("wikitext", True),
        ("a/b/c", False),
        ("prompts.jsonl", False),
        ("data/prompts.parquet", False),
        ("/data/prompts", False),
        ("my data", False),
    ],
)
def test_names_of_a_hub(tmp_path, monkeypatch, name, may_be):
    from pathlib import Path

    monkeypatch.chdir(tmp_path)
    assert may_be_on_a_hub(Path(name)) is may_be
    assert DataSource(Path(name)).is_on_a_hub is may_be


def test_without_the_library_the_line_says_so(places, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(
        InputError, match=r"read by the library datasets, which is not installed; run pip install"
    ):
        read(places / "data.parquet")
