"""Exact module names as the few regular expressions that INC can search quickly."""

from __future__ import annotations

import re
from collections.abc import Iterable


def compress(names: Iterable[str]) -> list[str]:
    r"""Turn names into anchored, escaped patterns, one per (prefix, suffix) around the layer index.

    INC applies `re.search` to every module name: unanchored, `layers.1` also hits layers 10 to 19,
    and beyond Python's cache of 512 patterns each search compiles anew.

    Example:
        >>> compress(["lm_head", "layers.0.mlp", "layers.12.mlp"])
        ['^lm_head$', '^layers\\.(?:0|12)\\.mlp$']
    """
    plain, indexed = [], dict[tuple[str, str], list[int]]()
    for name in sorted(set(names)):
        match = re.fullmatch(r"(.*?\.|)(0|[1-9][0-9]*)(\..+|)", name)
        if match:
            indexed.setdefault((match[1], match[3]), []).append(int(match[2]))
        else:
            plain.append(f"^{re.escape(name)}$")
    for (prefix, suffix), indices in sorted(indexed.items()):
        choices = "|".join(str(index) for index in sorted(indices))
        plain.append(f"^{re.escape(prefix)}(?:{choices}){re.escape(suffix)}$")
    return plain
