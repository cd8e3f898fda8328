"""Checking an INC FP8 file, hand-written ones included, against a model's modules."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inc_mp_plugin.core.errors import InputError, few, unknown
from inc_mp_plugin.inc.backend import device_table
from inc_mp_plugin.inc.check.keys import check_values, is_measuring
from inc_mp_plugin.inc.check.remarks import alike, remarks, resting
from inc_mp_plugin.inc.patterns import summarize
from inc_mp_plugin.inc.selection import Lists, pattern_lists, quantizable, selected
from inc_mp_plugin.targets.layout import Layout
from inc_mp_plugin.targets.rules import legality

Modules = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Report:
    """Findings about a file: `lines` show what INC would select, `faults` make the file suspicious."""

    lines: tuple[str, ...]
    faults: tuple[str, ...]


def check_config(
    config: Mapping[str, Any], layout: Layout, device: str, kv_cache: str | None = None
) -> Report:
    """Say what INC would select with a file, and what about that is suspicious.

    A file that measures is not held to the rules of a consumer: nothing runs in FP8 with it.

    Args:
        config: the content of an INC FP8 JSON.
        layout: the consumer's modules, and which of them go together.
        device: whose table of supported classes counts, "hpu" or "cpu".
        kv_cache: format of the KV cache that the model is served with; not compared if None.

    Raises:
        InputError: the device is unknown, or a pattern is no regular expression.
    """
    if device not in ("hpu", "cpu"):
        raise InputError(unknown("device", device, ("hpu", "cpu")))
    lists, measures = pattern_lists(config), is_measuring(config)
    lines, faults = list[str](), list[str]()
    picked = [selected(tree, config, device) for tree in layout.trees]
    for number, (tree, selection) in enumerate(zip(layout.trees, picked, strict=True), 1):
        candidates = quantizable(tree, device)
        version = f" (names, version {number})" if len(layout.trees) > 1 else ""
        verb = "measure" if measures else "quantize"
        lines += _selection(tree, candidates, selection, f"{device}{version}", verb)
        faults += [] if measures else _all_or_nothing(lists, candidates, selection, version)
    everything = {name: kind for tree in layout.trees for name, kind in tree.items()}
    faults += _patterns(lists, everything, set(quantizable(everything, device)), device)
    faults += _cancelled(lists, everything)
    if not measures:
        lowered = {name for selection in picked for name in selection}
        lines += remarks(layout, lowered)
        faults += alike(legality(layout, lowered, kv_cache))
        faults += resting(layout, lists, everything, lowered)
    notes, faults_of_values = check_values(config)
    return Report((*lines, *notes), tuple(dict.fromkeys((*faults, *faults_of_values))))


def _selection(
    tree: Modules, candidates: Sequence[str], selection: Sequence[str], where: str, verb: str
) -> Iterator[str]:
    yield f"INC would {verb} {len(selection)} of {len(candidates)} modules that it could on {where}:"
    for kind, count in sorted(Counter(tree[name] for name in selection).items()):
        yield f"  {count:5d} {kind}"
    rest = Counter(tree[name] for name in set(candidates).difference(selection))
    if rest and selection:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(rest.items()))
        yield f"and leave in the base format: {kinds}"
    yield from (f"  {names}" for names in summarize(selection))


def _all_or_nothing(
    lists: Lists, candidates: Sequence[str], selection: Sequence[str], version: str
) -> Iterator[str]:
    """Report if INC would quantize nothing, or everything although the lists hold something.

    INC would do either without a word.
    """
    has_entries = any(lists[name][part] for name in lists for part in lists[name])
    if not selection and ".*" not in lists["blocklist"]["names"]:
        yield f"the file selects nothing{version}: the model would run without FP8, and INC would not say so"
    elif has_entries and len(selection) == len(candidates):
        yield f"the lists change nothing{version}: everything that INC could quantize would run in FP8"


def _patterns(lists: Lists, modules: Modules, candidates: set[str], device: str) -> Iterator[str]:
    for name, parts in lists.items():
        for pattern in parts["names"]:
            hits = [module for module in modules if re.search(pattern, module)]
            # Users mostly mean whole parts of a dotted name.
            whole = {m for m in hits if re.search(rf"(?:^|\.)(?:{pattern})(?:\.|$)", m)}
            more = [module for module in hits if module not in whole and module in candidates]
            if re.search(r"\[\d+-\d\d+\]", pattern):
                yield (
                    f"{name}.names: {pattern!r} holds a set of digits, not a range of numbers; write "
                    "(?:0|1|2) for 0 to 2"
                )
            if not hits:
                yield f"{name}.names: {pattern!r} matches no module of the model"
            elif more and (whole or re.fullmatch(r"[\w.]+", pattern)):
                also = "also " if whole else ""
                yield (
                    f"{name}.names: {pattern!r} is searched for inside of names, so it {also}matches "
                    f"{few(more)}; write '^...$' with dots as '\\.'"
                )
        kinds = set(modules.values())
        for kind in parts["types"]:
            if kind not in kinds and (name == "allowlist" or kind not in device_table(device)):
                yield f"{name}.types: {kind!r} is the class of no module"


def _cancelled(lists: Lists, modules: Modules) -> Iterator[str]:
    """Report allowed entries that the block list takes back, and types that let in what names leave out."""
    block = lists["blocklist"]

    def blocked(module: str) -> bool:
        return modules[module] in block["types"] or any(re.search(p, module) for p in block["names"])

    hits = {("names", p): [m for m in modules if re.search(p, m)] for p in lists["allowlist"]["names"]}
    hits |= {("types", k): [m for m in modules if modules[m] == k] for k in lists["allowlist"]["types"]}
    for (part, entry), matches in hits.items():
        if matches and all(map(blocked, matches)):
            what_it_lets_in = "all it matches" if part == "names" else "all of that class"
            yield f"allowlist.{part}: {entry!r} is cancelled by the block list, which holds {what_it_lets_in}"
    if lists["allowlist"]["types"] and lists["allowlist"]["names"]:
        kinds = ", ".join(lists["allowlist"]["types"])
        yield f"allowlist: INC takes what fits a type OR a name, so every {kinds} is in, whatever its name"
