"""Samples: the texts and conversations that rows hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.model.data.source import DataSource, Excerpt, Row

FORMS = (
    '{"text": ...}, {"messages": [{"role": ..., "content": ...}, ...]} or {"prompt": ..., "completion": ...}'
)


@dataclass(frozen=True, slots=True)
class Completion:
    """A prompt with the answer to it, one text."""

    prompt: str
    answer: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages in turn, (role, content) each, for a chat template; a content's parts are texts and images.

    The first `prompt` messages are asked, whoever said them.
    """

    messages: tuple[tuple[str, tuple[str | Path, ...]], ...]
    prompt: int = 0

    @property
    def images(self) -> tuple[Path, ...]:
        """Files of all images, in the order of the messages."""
        return tuple(part for _, parts in self.messages for part in parts if isinstance(part, Path))


@dataclass(frozen=True, slots=True)
class Labelled:
    """A text with its class, its classes or its numbers."""

    text: str
    label: float | tuple[float, ...]


Sample = str | Completion | Conversation | Labelled


def samples_of(source: DataSource) -> Iterator[tuple[str, Sample]]:
    """Read the samples of a source, each with its place.

    A row is {"text": ...} (with "label" for a classifier), {"messages": [{"role": ..., "content": ...}, ...]}
    or {"prompt": ..., "completion": ...}; `source.column` names another column of texts or messages. Rows of
    a library without a text are passed over, as the empty lines of a file are.

    Raises:
        InputError: a row cannot be read, or is none of these.
    """
    folder = source.path if source.path.is_dir() else source.path.parent
    for row in source.rows():
        sample = _sample(row, source.column, folder)
        if source.kind is None or not isinstance(sample, str) or sample.strip():
            yield row.place, sample


def read_samples(excerpt: Excerpt) -> dict[str, Sample]:
    """Read samples by their places.

    Raises:
        InputError: they cannot be read, or there are too few of them.
    """
    path, stop = excerpt.source.path, excerpt.stop
    read = dict(islice(samples_of(excerpt.source), stop))
    if len(read) < stop:
        message = f"{path} holds {len(read)} samples, {stop} are asked for; give more, or ask for fewer"
        raise InputError(message)
    return dict(islice(read.items(), excerpt.skip, None))


def _sample(row: Row, column: str | None, folder: Path) -> Sample:
    entries = row.content if isinstance(row.content, Mapping) else {}
    if column is not None:
        if column not in entries:
            message = f"{row.place}: no column {column!r}; it has {', '.join(map(str, entries)) or 'none'}"
            raise InputError(message)
        value = entries[column]
        if not isinstance(value, (str, list)):
            message = f"{row.place}: column {column!r} holds {value!r}; it must hold a text, or messages"
            raise InputError(message)
        entries = {**entries, "text": None, "messages" if isinstance(value, list) else "text": value}
    if isinstance(entries.get("text"), str):
        text, label = _whole(row.place, entries["text"]), entries.get("label", entries.get("labels"))
        numbers = label if isinstance(label, list) else [label]
        if not numbers or not all(isinstance(number, (int, float)) for number in numbers):
            return text
        return Labelled(text, tuple(numbers) if isinstance(label, list) else numbers[0])
    if isinstance(entries.get("messages"), list) and entries["messages"]:
        return _conversation(row.place, entries["messages"], folder)
    pair = [entries.get(key) for key in ("prompt", "completion")]
    if all(isinstance(part, str) for part in pair):
        return Completion(*(_whole(row.place, str(part)) for part in pair))
    if all(isinstance(part, list) and part for part in pair):
        prompt, completion = (_conversation(row.place, list(part or []), folder).messages for part in pair)
        return Conversation(prompt + completion, len(prompt))
    columns = f" but {', '.join(map(str, entries))}" if entries else ""
    message = f'{row.place}: not an object with a "text"{columns}; give {FORMS}, or name its column'
    raise InputError(message)


def _conversation(place: str, messages: list[Any], folder: Path) -> Conversation:
    return Conversation(tuple(_message(place, entry, folder) for entry in messages))


def _message(place: str, entry: Any, folder: Path) -> tuple[str, tuple[str | Path, ...]]:
    role, content = (entry.get("role"), entry.get("content")) if isinstance(entry, Mapping) else (None, None)
    if isinstance(role, str) and isinstance(content, str):
        return role, (_whole(place, content),)
    if isinstance(role, str) and isinstance(content, list) and content:
        return role, tuple(_part(place, part, folder) for part in content)
    message = f'{place}: a message is not {{"role": ..., "content": ...}} with texts'
    raise InputError(message)


def _part(place: str, part: Any, folder: Path) -> str | Path:
    """Return the text or the image that is part of a message; an image's path is beside the data."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return _whole(place, part["text"])
    image = part.get("image", part.get("path")) if kind == "image" else None
    if isinstance(image, str):
        if not (folder / image).is_file():
            message = f"{place}: the image {folder / image} does not exist; its path is beside the data"
            raise InputError(message)
        return folder / image
    message = (
        f'{place}: a part of a message is neither {{"type": "text", "text": ...}} nor '
        '{"type": "image", "image": PATH}'
    )
    raise InputError(message)


def _whole(place: str, text: str) -> str:
    """Refuse a text that holds half of a character."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = f"\\u{ord(text[error.start]):04x}"
        message = f"{place}: its text holds {code}, half of a character; write both or none"
        raise InputError(message) from error
    return text
