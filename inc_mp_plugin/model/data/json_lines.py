"""Rows of a file of JSON lines, compressed or not, with the numbers of their lines."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.model.data.source import Row

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def json_lines(path: Path) -> Iterator[Row]:
    r"""Read a file of JSON lines, one line at a time; a file whose name ends with .gz is decompressed.

    Lines end at "\n" alone: U+2028 and its like may stand in a text. Empty lines count, and are passed over.

    Raises:
        InputError: it cannot be read, or a line is not JSON in UTF-8; the text holds its number.
    """
    try:
        with _open(path) as file:
            for number, line in enumerate(file, 1):
                content = line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line
                place = f"{path}, line {number}"
                text = _decoded(place, content)
                if text.strip():
                    yield Row(place, _parsed(place, text))
    except FileNotFoundError:
        message = f"data file {path} does not exist; give a file, a folder, or the name of a dataset on a hub"
        raise InputError(message) from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        message = f"data file {path} is not gzip, or cut short ({error}); compress it again"
        raise InputError(message) from error
    except OSError as error:
        message = f"data file {path} cannot be read: {error.strerror}"
        raise InputError(message) from error


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


def _decoded(place: str, line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        message = f"{place}: byte {line[error.start]:#04x} is not UTF-8; save the file as such"
        raise InputError(message) from error


def _parsed(place: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        message = f"{place}: not JSON ({error})"
        raise InputError(message) from error
