"""Places of samples: a file, a folder, or the name of a dataset on a hub."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from inc_mp_plugin.core.errors import InputError

# Endings of files for the library `datasets`, with its name for their kind; others are JSON lines.
LIBRARY_KINDS = {".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".txt": "text", ".arrow": "arrow"}
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


class Row(NamedTuple):
    """One row of data, with its place for messages, such as `data.jsonl, line 3`."""

    place: str
    content: Any


@dataclass(frozen=True, slots=True)
class DataSource:
    """Place of samples.

    Attributes:
        path: of a file or a folder, or the name of a dataset on a hub.
        split: of a dataset with several, such as "train".
        subset: of a dataset with several, such as "wikitext-2-raw-v1".
        column: that holds the texts or messages; if None, by the names of `samples.FORMS`.
    """

    path: Path
    split: str | None = None
    subset: str | None = None
    column: str | None = None

    @property
    def is_on_a_hub(self) -> bool:
        """True if this is the name of a dataset, and no path."""
        return not self.path.exists() and may_be_on_a_hub(self.path)

    @property
    def kind(self) -> str | None:
        """Kind of its files for the library `datasets`; None for JSON lines, "" for the library to find."""
        if self.path.is_dir() or self.is_on_a_hub:
            return ""
        name = self.path.with_suffix("") if self.path.suffix == ".gz" else self.path
        return LIBRARY_KINDS.get(name.suffix)

    def rows(self) -> Iterator[Row]:
        """Read the rows, in order, one at a time.

        Raises:
            InputError: they cannot be read, or a split or a subset is named of a plain file.
        """
        kind = self.kind
        if kind != "" and (self.split or self.subset):
            key = "split" if self.split else "subset"
            message = (
                f"{key} is {self.split or self.subset!r}, but {self.path} is a file; leave {key} out, or "
                "give a folder or a name on a hub"
            )
            raise InputError(message)
        if kind is None:
            from inc_mp_plugin.model.data.json_lines import json_lines

            return json_lines(self.path)
        from inc_mp_plugin.model.data.library import library_rows

        return library_rows(self, kind)


@dataclass(frozen=True, slots=True)
class Excerpt:
    """A number of samples of a source, after `skip` others."""

    source: DataSource
    samples: int
    skip: int = 0

    @property
    def stop(self) -> int:
        """The number of samples up to the last of these."""
        return self.skip + self.samples


def may_be_on_a_hub(path: Path) -> bool:
    """Tell if a path without a file could be the name of a dataset: one slash at most, no ending of data."""
    endings = {*LIBRARY_KINDS, ".gz", ".json", ".jsonl"}
    return bool(_HUB_NAME.fullmatch(str(path))) and path.suffix not in endings
