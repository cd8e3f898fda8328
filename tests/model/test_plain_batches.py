"""Batches as users pass them: each kind against the same samples as plain dicts of tensors."""

import weakref
from collections import UserDict, namedtuple
from dataclasses import dataclass
from pathlib import Path

import helpers
import numpy as np
import pytest
import torch
import transformers
from torch.utils.data import DataLoader, Dataset
from transformers.utils import ModelOutput

import inc_mp_plugin as mp
from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.model.plain_batches import plain, plain_batches

IDS = helpers.tokens(4, 6)
PLAIN = [{"input_ids": IDS[:2]}, {"input_ids": IDS[2:]}]


@dataclass
class Fields:
    """A batch as a dataclass, one field of which is not given."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor | None = None


@dataclass
class Output(ModelOutput):
    """A batch as transformers makes outputs."""

    input_ids: torch.Tensor | None = None


class Rows(Dataset):
    """Samples, one by one."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return {"input_ids": IDS[index]}


class HubDataset:
    """What `datasets.Dataset` shows of itself: rows as lists of numbers."""

    column_names = features = ("input_ids",)

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if index >= 4:
            raise IndexError(index)
        return {"input_ids": IDS[index].tolist()}


KINDS = {
    "list": lambda: PLAIN,
    "tuple": lambda: tuple(PLAIN),
    "generator": lambda: (batch for batch in PLAIN),
    "loader": lambda: DataLoader(Rows(), batch_size=2),
    "encoding": lambda: [transformers.BatchEncoding(batch) for batch in PLAIN],
    "encoding of lists": lambda: [
        transformers.BatchEncoding({"input_ids": b["input_ids"].tolist()}) for b in PLAIN
    ],
    "user dict": lambda: [UserDict(batch) for batch in PLAIN],
    "dataclass": lambda: [Fields(batch["input_ids"]) for batch in PLAIN],
    "output": lambda: [Output(**batch) for batch in PLAIN],
    "numpy": lambda: [{"input_ids": batch["input_ids"].numpy()} for batch in PLAIN],
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_same_batches_as_often_as_asked(kind):
    batches = plain_batches(KINDS[kind]())
    for _ in range(2):
        assert len(batches) == 2
        for index, (batch, expected) in enumerate(zip(batches, PLAIN, strict=True)):
            assert type(batch) is dict and batch.keys() == expected.keys()
            assert torch.equal(batch["input_ids"], expected["input_ids"])
            assert torch.equal(batches[index]["input_ids"], expected["input_ids"])


def test_rows_of_a_dataset_are_batches_of_one():
    batches = plain_batches(HubDataset())
    assert [batch["input_ids"].shape for batch in batches] == [(1, 6)] * 4
    assert torch.equal(batches[3]["input_ids"][0], IDS[3])


def test_nested_parts_keep_their_structure():
    """Only what merely behaves like a dict becomes one: a model may ask for attributes, or for a list."""
    kind = namedtuple("Point", "x y")
    output = Output(input_ids=IDS)
    parts = (kind(np.ones((2, 1)), torch.zeros(2)), {"b": UserDict(c=torch.ones(2))}, [torch.ones(2)], output)
    made = plain({"a": parts, "flag": True, "nothing": None}, "batch 1")
    point, mapping, items, same = made["a"]
    assert made["flag"] is True and made["nothing"] is None
    assert isinstance(point, kind) and torch.equal(point.x, torch.ones(2, 1, dtype=torch.float64))
    assert type(mapping["b"]) is dict and torch.equal(mapping["b"]["c"], torch.ones(2))
    assert type(items) is list and same is output


def test_a_loader_that_shuffles_gives_one_order():
    batches = plain_batches(DataLoader(Rows(), batch_size=1, shuffle=True))
    assert [b["input_ids"].tolist() for b in batches] == [b["input_ids"].tolist() for b in batches]


def test_a_generator_is_never_in_memory_whole():
    alive = weakref.WeakSet()

    def stream():
        for _ in range(20):
            tensor = torch.zeros(2, 3)
            alive.add(tensor)
            yield {"input_ids": tensor}
            assert len(alive) <= 3

    batches = plain_batches(stream())
    folder = Path(batches._folder.name)
    assert len(batches) == 20 and len(list(folder.iterdir())) == 20
    assert [b["input_ids"].shape for b in batches[18:]] == [(2, 3)] * 2
    del batches
    assert not folder.exists()


@pytest.mark.parametrize(
    ("batches", "text"),
    [
        ("text", r"batches is one str; give an iterable of batches"),
        (IDS, r"batches is one Tensor; give .* \[batch\]"),
        (PLAIN[0], "batches is one dict"),
        (transformers.BatchEncoding(PLAIN[0]), "batches is one BatchEncoding"),
        (7, "batches is of type int"),
        (Rows(), "a Rows, whose items are samples; give DataLoader"),
        ([*PLAIN, {"input_ids": IDS[:0]}], "batch 3.*holds no samples"),
        ([{}], "batch 1.*holds no samples"),
        (
            [{"input_ids": IDS}, {"input_ids": IDS, "labels": IDS}],
            r"batch 2 has the keys \['input_ids', 'labels'\]",
        ),
        ([{"input_ids": IDS, "text": ["a", "b"]}], "batch 1, key `text`, part 1: text .'a'."),
        ([{"a": Fields(IDS)}], "batch 1, key `a`: a Fields, which torch cannot trace"),
        ([{"input_ids": [[1, 2], [3]]}], "batch 1, key `input_ids`: lists of different lengths; pad them"),
        ([{"input_ids": np.array([None, "a"])}], "batch 1, key `input_ids`: a NumPy array of dtype object"),
    ],
)
def test_what_is_no_batch_is_named(batches, text):
    with pytest.raises(InputError, match=text):
        plain_batches(batches)


def test_a_plan_of_a_loader_is_that_of_a_list(tmp_path):
    model = helpers.language_model("llama")
    by_loader = mp.tune(model, DataLoader(Rows(), batch_size=2), gain_fraction=0.5, out=tmp_path / "loader")
    by_list = mp.tune(
        model, [{"input_ids": IDS[:2]}, {"input_ids": IDS[2:]}], gain_fraction=0.5, out=tmp_path / "list"
    )
    assert by_loader.formats == by_list.formats and by_loader.loss_mse == by_list.loss_mse
    converted = mp.apply(model, by_loader, DataLoader(Rows(), batch_size=2))
    patched = {
        name for name, module in converted.named_modules() if type(module).__name__.startswith("Patched")
    }
    assert patched == set(by_loader.quantized)
