"""Texts of a JSON-lines file, with the numbers of their lines."""

from __future__ import annotations

import json
from pathlib import Path

from inc_mp_plugin.core.errors import InputError


def read_texts(path: Path, samples: int, skip: int = 0) -> dict[int, str]:
    r"""Read the texts of a JSON-lines file by line number: the first, or those after `skip` others.

    Lines end at "\n" alone: U+2028 and its like may stand in a text. Empty lines count, and are passed over.

    Args:
        path: of the file.
        samples: number of texts to read.
        skip: number of texts to leave out at the start of the file.

    Raises:
        InputError: it cannot be read, a line is not {"text": ...}, or it has too few of them.
    """
    lines = _lines(path)
    if len(lines) < skip + samples:
        message = (
            f"{path} holds {len(lines)} samples, {skip + samples} are asked for; give more, or ask for fewer"
        )
        raise InputError(message)
    return {number: _text(path, number, line) for number, line in lines[skip : skip + samples]}


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
        message = f"data file {path} does not exist"
        raise InputError(message) from None
    except OSError as error:
        message = f"data file {path} cannot be read: {error.strerror}"
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


def _text(path: Path, number: int, line: str) -> str:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        message = f"{path}, line {number}: not JSON ({error})"
        raise InputError(message) from error
    if not isinstance(content, dict) or not isinstance(content.get("text"), str):
        message = f'{path}, line {number}: not an object with a "text"'
        raise InputError(message)
    text = str(content["text"])
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = f"\\u{ord(text[error.start]):04x}"
        message = f"{path}, line {number}: its text holds {code}, half of a character; write both or none"
        raise InputError(message) from error
    return text
