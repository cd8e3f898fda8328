"""A file of a run folder: how its value is written and read, and what it followed from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.runtime import store
from inc_mp_plugin.runtime.codec import from_json, to_json
from inc_mp_plugin.runtime.reuse import run_stage

Value = TypeVar("Value")
Part = TypeVar("Part")
Json = dict[str, Any]


@dataclass(frozen=True)
class Artefact(Generic[Value]):
    """A kind of file.

    Attributes:
        kind: for its schema, and for the number of its arithmetic.
        decode: reads its content.
        encode: writes a value as its content.
        stem: its path in the folder, without ".json"; the kind if empty.
    """

    kind: str
    decode: Callable[[Json], Value]
    encode: Callable[[Value], Json] = to_json
    stem: str = ""

    def path(self, folder: Path) -> Path:
        """Name the file in a folder."""
        return folder / f"{self.stem or self.kind}.json"

    def read(self, folder: Path) -> Value:
        """Read the value.

        Raises:
            InputError: the file is missing or damaged.
        """
        return self._read(folder, self.decode)

    def made_from(self, folder: Path) -> Json:
        """Read what the value followed from, and which version made it.

        Raises:
            InputError: the file is missing or damaged.
        """
        return self._read(folder, _made_from)

    def make(
        self,
        folder: Path,
        depends_on: Mapping[str, Any],
        compute: Callable[[], Value],
        extra: Mapping[str, Any] | None = None,
    ) -> Value:
        """Reuse the file while all that it follows from is the same; else compute the value and write it.

        Args:
            folder: of the run.
            depends_on: everything that the value follows from.
            compute: makes the value.
            extra: what to write beside it, for people.
        """

        def make() -> tuple[Value, Json]:
            value = compute()
            return value, {**self.encode(value), **(extra or {})}

        return run_stage(self.path(folder), self.kind, depends_on, decode=self.decode, make=make)

    def _read(self, folder: Path, decode: Callable[[Json], Part]) -> Part:
        path = self.path(folder)
        content = store.read_json(path, self.kind)
        try:
            return decode(content)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(store.damaged(path, str(error))) from error


def _made_from(content: Json) -> Json:
    return {**content.get("depends_on", {}), "made_by": content.get("made_by")}


def artefact_of(value: type[Value], kind: str) -> Artefact[Value]:
    """Describe the file of a frozen dataclass whose content is its fields."""
    return Artefact(kind, partial(from_json, value))
