"""Files on disk: schema and fingerprint of an artefact, and writing that never leaves half a file."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inc_mp_plugin.core.errors import InputError

Json = dict[str, Any]

# Files that were not whole yet, with the number of their process, and folders of `BaseLogits`.
_ASIDE = re.compile(r"\..+\.(json|npz|sh|html|png|svg)\.\d+|\.base-logits-\d+-.+")


def schema(kind: str) -> str:
    """Name the schema of a kind of artefact."""
    return f"inc_mp_plugin/{kind}/1"


def fingerprint(parts: Mapping[str, Any]) -> str:
    """Hash everything an artefact depends on, as JSON.

    Example:
        >>> fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
        True
    """
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def file_fingerprint(path: Path) -> str:
    """Hash a file's content.

    Raises:
        InputError: it does not exist.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while part := file.read(1 << 20):
                digest.update(part)
    except OSError as error:
        message = f"{path} cannot be read: {error.strerror}"
        raise InputError(message) from error
    return digest.hexdigest()


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file aside and rename it: readers see the old file or the new one, never a part.

    Raises:
        InputError: it cannot be written there.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            aside.write_bytes(content)
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
    except OSError as error:
        message = f"{path} cannot be written: {error.strerror}"
        raise InputError(message) from error


def remove_left(folder: Path) -> None:
    """Remove what killed processes left aside in a folder of artefacts, where nobody else may write now."""
    for path in (*folder.glob(".*"), *folder.glob("*/.*")):
        if _ASIDE.fullmatch(path.name) and path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif _ASIDE.fullmatch(path.name):
            path.unlink(missing_ok=True)


def write_json(path: Path, content: Json) -> None:
    """Write JSON with sorted keys and floats as `repr` gives them.

    Raises:
        ValueError: a NaN or an infinity, which JSON cannot hold.
    """
    text = json.dumps(content, sort_keys=True, indent=1, allow_nan=False)
    write_bytes(path, text.encode() + b"\n")


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> str:
    """Write an .npz file, readable without pickle; return the SHA-256 of its content."""
    import numpy as np

    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_bytes(path, buffer.getvalue())
    return hashlib.sha256(buffer.getvalue()).hexdigest()


def read_arrays(path: Path, sha256: str | None = None) -> dict[str, Any]:
    """Read an .npz file written by `write_arrays`.

    Raises:
        InputError: it is missing, unreadable, or not the file of that hash.
    """
    import zipfile

    import numpy as np

    content = _read(path)
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise InputError(damaged(path, "its content is not what was written"))
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return dict(arrays)
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise InputError(damaged(path, str(error))) from error


@dataclass(frozen=True, slots=True)
class Partial:
    """Arrays of a stage that is under way, so that an interrupt loses nothing.

    They count only under the key they were saved with: a hash of what the stage depends on.
    """

    path: Path
    key: str

    def load(self) -> dict[str, Any]:
        """Load what was saved under the same key; empty if there is nothing usable."""
        if not self.path.exists():
            return {}
        try:
            arrays = read_arrays(self.path)
        except InputError:
            return {}
        return arrays if str(arrays.pop("key", "")) == self.key else {}

    def save(self, arrays: Mapping[str, Any]) -> None:
        """Save, in place of what was saved before."""
        import numpy as np

        write_arrays(self.path, {**arrays, "key": np.array(self.key)})

    def remove(self) -> None:
        """Forget everything: the stage is done."""
        self.path.unlink(missing_ok=True)


def write_artefact(path: Path, kind: str, content: Json) -> None:
    """Write an artefact: with its schema, and a hash by which a later change is noticed.

    Args:
        path: of the artefact.
        kind: of the artefact, for its schema.
        content: of the artefact, without schema and hash.
    """
    whole = {**content, "schema": schema(kind)}
    write_json(path, {**whole, "sha256": fingerprint(whole)})


def read_json(path: Path, kind: str) -> Json:
    """Read an artefact; check its schema, and its hash if it has one.

    Raises:
        InputError: it is missing, not JSON, of another schema, changed since it was written, or holds
            a number that is not finite.
    """
    text = _read(path)
    try:
        content = json.loads(text, parse_constant=_refuse_constant)
    except ValueError as error:
        raise InputError(damaged(path, str(error))) from error
    name = content.get("schema") if isinstance(content, dict) else None
    if name != schema(kind):
        raise InputError(damaged(path, f"its schema is {name!r}, not {schema(kind)!r}"))
    artefact: Json = content
    if artefact.pop("sha256", None) not in (None, fingerprint(artefact)):
        raise InputError(damaged(path, "its content is not what was written"))
    return artefact


def unmarked(content: Json, kind: str, *others: str) -> Json:
    """Remove the marks of an artefact of this kind (schema and hash), and these keys, from its content.

    Content of another schema is returned as it is.
    """
    if content.get("schema") != schema(kind):
        return content
    return {key: value for key, value in content.items() if key not in ("schema", "sha256", *others)}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        message = f"{path} is missing; run `inc-mp tune RECIPE.yaml --out {path.parent}` first"
        raise InputError(message) from None
    except OSError as error:
        message = f"{path} cannot be read: {error.strerror}"
        raise InputError(message) from error


def damaged(path: Path, why: str) -> str:
    """Say that a file is damaged, and what to do."""
    return f"{path} is damaged ({why}); delete it and run `inc-mp tune` again"


def _refuse_constant(name: str) -> None:
    message = f"it holds {name}"
    raise ValueError(message)
