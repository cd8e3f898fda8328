"""Texts and conversations of a JSON-lines file, with the numbers of their lines."""

from __future__ import annotations

import gzip
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inc_mp_plugin.core.errors import InputError

_FORMS = (
    '{"text": ...}, {"messages": [{"role": ..., "content": ...}, ...]} or {"prompt": ..., "completion": ...}'
)


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages in turn, (role, content) each, for a tokenizer's chat template."""

    messages: tuple[tuple[str, str], ...]


def read_texts(path: Path, samples: int, skip: int = 0) -> dict[int, str | Conversation]:
    r"""Read the samples of a JSON-lines file by line number: the first, or those after `skip` others.

    A line is {"text": ...}, {"messages": [{"role": ..., "content": ...}, ...]}, or {"prompt": ...,
    "completion": ...}, which are one text. Lines end at "\n" alone: U+2028 and its like may stand in a text.
    Empty lines count, and are passed over. A file whose name ends with .gz is decompressed.

    Args:
        path: of the file.
        samples: number of texts to read.
        skip: number of texts to leave out at the start of the file.

    Raises:
        InputError: it cannot be read, a line is none of these, or it has too few of them.
    """
    lines = _lines(path)
    if len(lines) < skip + samples:
        message = (
            f"{path} holds {len(lines)} samples, {skip + samples} are asked for; give more, or ask for fewer"
        )
        raise InputError(message)
    return {number: _sample(f"{path}, line {number}", line) for number, line in lines[skip : skip + samples]}


def count_texts(path: Path) -> int:
    """Count the samples of a JSON-lines file.

    Raises:
        InputError: it cannot be read.
    """
    return len(_lines(path))


def _lines(path: Path) -> list[tuple[int, str]]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        message = (
            f"data file {path} does not exist; a relative path is beside the recipe or in the working folder"
        )
        raise InputError(message) from None
    except OSError as error:
        message = f"data file {path} cannot be read: {error.strerror}"
        raise InputError(message) from error
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            message = f"data file {path} is not gzip, or cut short ({error}); compress it again"
            raise InputError(message) from error
    try:
        decoded = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = content[: error.start].count(b"\n") + 1
        message = (
            f"{path}, line {number}: byte {content[error.start]:#04x} is not UTF-8; save the file as such"
        )
        raise InputError(message) from error
    return [(number, line) for number, line in enumerate(decoded.split("\n"), 1) if line.strip()]


def _sample(where: str, line: str) -> str | Conversation:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        message = f"{where}: not JSON ({error})"
        raise InputError(message) from error
    entries = content if isinstance(content, dict) else {}
    if isinstance(entries.get("text"), str):
        return _whole(where, entries["text"])
    if isinstance(entries.get("messages"), list) and entries["messages"]:
        return Conversation(tuple(_message(where, entry) for entry in entries["messages"]))
    pair = [entries.get(key) for key in ("prompt", "completion")]
    if all(isinstance(part, str) for part in pair):
        return _whole(where, "".join(map(str, pair)))
    message = f'{where}: not an object with a "text"; give {_FORMS}'
    raise InputError(message)


def _message(where: str, entry: Any) -> tuple[str, str]:
    role, text = (entry.get("role"), entry.get("content")) if isinstance(entry, dict) else (None, None)
    if not (isinstance(role, str) and isinstance(text, str)):
        message = f'{where}: a message is not {{"role": ..., "content": ...}} with texts'
        raise InputError(message)
    return role, _whole(where, text)


def _whole(where: str, text: str) -> str:
    """Refuse a text that holds half of a character."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = f"\\u{ord(text[error.start]):04x}"
        message = f"{where}: its text holds {code}, half of a character; write both or none"
        raise InputError(message) from error
    return text
