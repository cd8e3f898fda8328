"""Texts joined to samples of full length."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain

from inc_mp_plugin.model.data.tokens import Tokens


def packed(texts: Iterable[Tokens], length: int) -> Iterator[Tokens]:
    """Join texts in order, and cut them into samples of a length; what does not fill the last is left out.

    Positions count from 0 in each text, and in the rest of a text that the end of a sample cuts off.

    Args:
        texts: tokens of each text.
        length: tokens per sample.

    Example:
        >>> text = Tokens("a", (5, 6, 7), (True, True, True))
        >>> [(sample.ids, sample.positions) for sample in packed([text, text], 4)]
        [((5, 6, 7, 5), (0, 1, 2, 0))]
    """
    pieces: list[Tokens] = []
    free = length
    for text in texts:
        rest = text
        while len(rest.ids) >= free:
            pieces.append(_cut(rest, 0, free))
            rest = _cut(rest, free, len(rest.ids))
            yield _joined(pieces)
            pieces, free = [], length
        if rest.ids:
            pieces.append(rest)
            free -= len(rest.ids)


def _cut(text: Tokens, start: int, stop: int) -> Tokens:
    return Tokens(text.place, text.ids[start:stop], text.counts[start:stop])


def _joined(pieces: list[Tokens]) -> Tokens:
    ids = tuple(chain.from_iterable(piece.ids for piece in pieces))
    counts = tuple(chain.from_iterable(piece.counts for piece in pieces))
    positions = tuple(chain.from_iterable(range(len(piece.ids)) for piece in pieces))
    return Tokens(pieces[0].place, ids, counts, positions)
