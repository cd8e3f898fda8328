"""The documents of the tasks in this folder, for lm-eval: wherever the folder is, without a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from datasets import Dataset

FOLDER = Path(__file__).resolve().parent


def cloze(**metadata: Any) -> dict[str, Dataset]:
    """The documents {context, word}."""
    return {"test": _documents("cloze")}


def endings(**metadata: Any) -> dict[str, Dataset]:
    """The documents {context, endings, label}."""
    return {"test": _documents("endings")}


def _documents(name: str) -> Dataset:
    """The documents of a file that make_documents.py wrote."""
    lines = (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return Dataset.from_list([json.loads(line) for line in lines])
