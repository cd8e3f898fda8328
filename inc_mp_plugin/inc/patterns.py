"""Exact module names as the few regular expressions that INC can search quickly."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

_INDEX = re.compile(r"(?<=\.)(0|[1-9][0-9]*)(?=\.|$)|^(0|[1-9][0-9]*)(?=\.)")


def compress(names: Iterable[str]) -> list[str]:
    r"""Turn names into anchored, escaped patterns, few of them by uniting indices.

    INC applies `re.search` to every module name: unanchored, `layers.1` also hits layers 10 to 19,
    and beyond Python's cache of 512 patterns each search compiles anew. Names that differ in their last
    index only (experts of a layer) become one pattern, then patterns that differ in their first index
    only (layers); both keep exactly the names they are made of.

    Example:
        >>> compress(["lm_head", "layers.0.mlp", "layers.12.mlp"])
        ['^lm_head$', '^layers\\.(?:0|12)\\.mlp$']
        >>> compress(f"layers.{i}.experts.{j}.w1" for i in (0, 3) for j in (0, 1))
        ['^layers\\.(?:0|3)\\.experts\\.(?:0|1)\\.w1$']
    """
    plain, inner = [], defaultdict[tuple[str, ...], set[int]](set)
    for name in set(names):
        spans = [match.span() for match in _INDEX.finditer(name)]
        if not spans:
            plain.append(f"^{re.escape(name)}$")
            continue
        (first, first_end), (last, last_end) = spans[0], spans[-1]
        parts = (name[:first], name[first:first_end], name[first_end:last], name[last_end:])
        if len(spans) == 1:
            parts = (name[:first], name[first:first_end], name[first_end:], "")
        inner[parts].add(int(name[last:last_end]) if len(spans) > 1 else -1)
    outer = defaultdict[tuple[str, str, str, tuple[int, ...]], set[int]](set)
    for (before, index, middle, after), indices in inner.items():
        outer[before, middle, after, tuple(sorted(indices))].add(int(index))
    patterns = [
        f"^{re.escape(before)}{_any(outers)}{re.escape(middle)}{_any(inners)}{re.escape(after)}$"
        for (before, middle, after, inners), outers in sorted(outer.items())
    ]
    return sorted(plain) + patterns


def _any(indices: Iterable[int]) -> str:
    """Return a pattern for one of these numbers; "" for -1 alone, which stands for no index."""
    numbers = sorted(indices)
    return "" if numbers == [-1] else f"(?:{'|'.join(map(str, numbers))})"


def summarize(names: Iterable[str]) -> list[str]:
    """Shorten a list of names for people to read: names that differ in their indices become one.

    Example:
        >>> summarize(["lm_head", *(f"layers.{i}.mlp" for i in (0, 1, 2, 5))])
        ['layers.{0-2,5}.mlp', 'lm_head']
    """
    plain = (re.sub(r"\\(.)", r"\1", pattern[1:-1]) for pattern in compress(names))
    return sorted(re.sub(r"\(\?:([0-9|]+)\)", lambda match: _ranges(match[1].split("|")), n) for n in plain)


def _ranges(indices: Iterable[str]) -> str:
    runs: list[list[int]] = []
    for index in map(int, indices):
        if runs and runs[-1][-1] == index - 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    text = ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
    return text if len(runs) == len(runs[0]) == 1 else f"{{{text}}}"
