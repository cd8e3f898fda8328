"""Remarks on a selection of modules, beside the rules of a consumer that the selection breaks."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator

from inc_mp_plugin.inc.patterns import summarize
from inc_mp_plugin.inc.selection import Lists
from inc_mp_plugin.targets.layout import Layout


def remarks(layout: Layout, lowered: Collection[str]) -> Iterator[str]:
    """Yield what a reader of a file should know about the modules in FP8, though nothing is wrong."""
    routers = [name for name in layout.routers if name in lowered]
    if routers:
        yield (
            f"note: {len(routers)} routers would run in FP8 ({'; '.join(summarize(routers))}), which may "
            "choose other experts; plans of ours never do that"
        )
    if not lowered:
        yield "note: nothing is selected: the model runs without FP8"
    caches = [name for name in layout.caches if name in lowered]
    if caches:
        yield f"note: {len(caches)} modules hold the KV cache: it would be in FP8"


def resting(layout: Layout, lists: Lists, modules: Iterable[str], lowered: Collection[str]) -> Iterator[str]:
    """Report patterns that match only modules which never run the way the model is served.

    Other modules run in their place. With an allowed pattern those stay in the base format; with a blocked
    pattern they run in FP8.

    Args:
        layout: the consumer's modules; its `resting` ones never run.
        lists: the file's allow and block lists, from `pattern_lists`.
        modules: names of all modules.
        lowered: names of the modules that INC would quantize.
    """
    names = list(modules)
    for name, is_lowered in (("allowlist", False), ("blocklist", True)):
        for pattern in lists[name]["names"]:
            hits = [module for module in names if re.search(pattern, module)]
            instead = [layout.resting[module] for module in hits if module in layout.resting]
            if hits and len(instead) == len(hits) and (instead[0] in lowered) == is_lowered:
                runs = "in FP8" if is_lowered else "in the base format"
                yield (
                    f"{name}.names: {pattern!r} matches only modules that never run with this attention; "
                    f"{instead[0]} runs instead, {runs}"
                )


def alike(faults: Iterable[str]) -> list[str]:
    """Unite faults that differ in their numbers (of layers, of experts) only into one line.

    Example:
        >>> alike(["layers.0.k is in FP8", "layers.1.k is in FP8", "lm_head is in FP8"])
        ['layers.0.k is in FP8 (and 1 more like it)', 'lm_head is in FP8']
    """
    groups: dict[str, list[str]] = {}
    for fault in faults:
        groups.setdefault(re.sub(r"(?<=\.)\d+(?=\.)", "*", fault), []).append(fault)
    return [
        first if not more else f"{first} (and {len(more)} more like it)" for first, *more in groups.values()
    ]
