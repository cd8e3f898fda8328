"""`quantization_config` of a checkpoint as a server reads it: which modules it names, and their schemes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.export.settings import QUANT_METHOD

_PATTERN = "re:"


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of `ignore` or `targets`: an exact name, or `re:` and a pattern, matched from the start."""

    text: str

    @property
    def pattern(self) -> str | None:
        """The pattern; None for an exact name."""
        return self.text.removeprefix(_PATTERN) if self.text.startswith(_PATTERN) else None

    @property
    def fault(self) -> str:
        """The reason why the pattern is none; "" if it is one, or a name."""
        try:
            re.compile(self.pattern or "")
        except re.error as error:
            return f"{self.text!r} is no regular expression: {error}"
        return ""

    def hits(self, name: str) -> bool:
        """Tell whether vLLM takes a name for this entry.

        Args:
            name: of a module.
        """
        if self.fault:
            return False
        return name == self.text if self.pattern is None else re.match(self.pattern, name) is not None

    def hits_by_its_start(self, name: str) -> bool:
        """Tell whether the pattern ends before the name does, so that `$` would leave it out.

        Args:
            name: of a module.
        """
        return self.pattern is not None and self.hits(name) and not re.fullmatch(self.pattern, name)


@dataclass(frozen=True)
class Settings:
    """The `quantization_config` of a checkpoint of compressed-tensors."""

    ignore: tuple[Entry, ...]
    groups: tuple[Mapping[str, Any], ...]
    has_cache: bool

    @staticmethod
    def of(config: Mapping[str, Any], where: str) -> Settings:
        """Read a config.json.

        Args:
            config: its content.
            where: its folder, for errors.

        Raises:
            InputError: it is of another kind of quantization, or of none.
        """
        content = config.get("quantization_config") or config.get("compression_config")
        if not isinstance(content, dict):
            message = f"{where}: config.json has no quantization_config; there is nothing to check"
            raise InputError(message)
        if content.get("quant_method") != QUANT_METHOD:
            message = (
                f"{where}: quant_method is {content.get('quant_method')!r}; only {QUANT_METHOD} is checked"
            )
            raise InputError(message)
        groups = content.get("config_groups")
        if not isinstance(groups, dict) or not all(isinstance(group, dict) for group in groups.values()):
            message = f"{where}: quantization_config has no config_groups"
            raise InputError(message)
        ignore = tuple(map(Entry, content.get("ignore") or ()))
        return Settings(ignore, tuple(groups.values()), content.get("kv_cache_scheme") is not None)

    def ignored(self, name: str) -> bool:
        """Tell whether a module is to stay as it is.

        Args:
            name: of the module.
        """
        return name in self._names or any(entry.hits(name) for entry in self._patterns)

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(entry.text for entry in self.ignore if entry.pattern is None)

    @cached_property
    def _patterns(self) -> tuple[Entry, ...]:
        return tuple(entry for entry in self.ignore if entry.pattern is not None)

    def group_of(self, name: str, *, linear: bool = True) -> Mapping[str, Any] | None:
        """Return the group that a module belongs to: by its name, or as a linear layer; None without one.

        Args:
            name: of the module.
            linear: False for a head, whose class in vLLM is none of the linear ones.
        """
        for group in self.groups:
            if any(Entry(str(target)).hits(name) for target in group.get("targets", ())):
                return group
        by_class = (group for group in self.groups if linear and "Linear" in group.get("targets", ()))
        return next(by_class, None)


def entry_faults(entries: Iterable[Entry], names: Iterable[str]) -> Iterator[str]:
    """Yield what is wrong with entries of `ignore`: they match nothing, or more than they say.

    Args:
        entries: of the list.
        names: of all modules.
    """
    everything = set(names)
    for entry in entries:
        if entry.fault:
            yield f"ignore: {entry.fault}"
            continue
        if entry.text not in everything and not any(map(entry.hits, everything if entry.pattern else ())):
            yield f"ignore: {entry.text!r} matches no module{_hint(entry, sorted(everything))}"
        more = sorted(filter(entry.hits_by_its_start, everything if entry.pattern else ()))
        if more:
            yield (
                f"ignore: {entry.text!r} matches {more[0]} by its start; patterns end where they end: write "
                f"'{entry.text}$'"
            )


def _hint(entry: Entry, names: Iterable[str]) -> str:
    """Say what a name may have been meant as."""
    if entry.pattern is not None:
        return "; a pattern is matched from the start of a name"
    if any(character in entry.text for character in "*^$[("):
        return "; it is taken for a name: patterns begin with 're:'"
    inside = [name for name in names if name.endswith(f".{entry.text}")]
    return f"; an entry is the whole name, such as {inside[0]}" if inside else ""
