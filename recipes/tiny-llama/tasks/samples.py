"""The documents of the tasks in this folder, for lm-eval: wherever the folder is, without a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from datasets import Dataset

FOLDER = Path(__file__).resolve().parent
VALIDATION = 128  # held-out texts that recipes/tiny-llama-proof.yaml validates with


def cloze(**metadata: Any) -> dict[str, Dataset]:
    """The documents that make_tasks.py has chosen: {context, word}."""
    return {"test": Dataset.from_list(_lines(FOLDER / "cloze.jsonl"))}


def passages(**metadata: Any) -> dict[str, Dataset]:
    """The held-out texts that the validation leaves: {text}."""
    return {"test": Dataset.from_list(_lines(FOLDER.parent / "heldout.jsonl")[VALIDATION:])}


def _lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
