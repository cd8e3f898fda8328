"""Packages that the plugin needs, by the metadata of its installation: which are there, and new enough."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib import metadata
from importlib.util import find_spec
from typing import NamedTuple

from inc_mp_plugin.core.missing import not_installed

PLUGIN = "inc_mp_plugin"
# On a Gaudi, INC is a package of its own.
_ALSO_CALLED = {"neural-compressor": ("neural-compressor", "neural-compressor-pt")}


class Requirement(NamedTuple):
    """A package that is needed, with its versions, such as ">=2.5"; by which extra, "" for all users."""

    name: str
    versions: str
    extra: str = ""


def requirements(lines: Iterable[str]) -> list[Requirement]:
    """Read requirements as the metadata of a package has them.

    Args:
        lines: of `importlib.metadata.requires`.

    Example:
        >>> requirements(["neural-compressor[pt]<4,>=3.5; extra == 'inc'"])
        [Requirement(name='neural-compressor', versions='<4,>=3.5', extra='inc')]
    """
    pattern = r"([\w.-]+)\s*(?:\[[\w, -]*\])?\s*([^;]*?)\s*(?:;.*?extra\s*==\s*['\"]([\w-]+)['\"].*)?"
    matches = [re.fullmatch(pattern, line) for line in lines]
    return [Requirement(match[1], match[2], match[3] or "") for match in matches if match]


def own_requirements() -> list[Requirement]:
    """Read what the installed plugin needs."""
    return requirements(metadata.requires(PLUGIN) or [])


def installed(name: str) -> str | None:
    """Return the installed version of a package, None without it."""
    for called in _ALSO_CALLED.get(name, (name,)):
        try:
            return metadata.version(called)
        except metadata.PackageNotFoundError:
            continue
    return None


def need(*modules: str) -> None:
    """Refuse work for which modules are missing.

    Raises:
        InputError: some are not installed; the text has the command that installs them.
    """
    missing = not_installed([name for name in modules if find_spec(name) is None])
    if missing is not None:
        raise missing


def fault(requirement: Requirement, version: str | None) -> str:
    """Say why an installed version does not do; empty if it does.

    Example:
        >>> needed = Requirement("torch", ">=2.5,<3")
        >>> fault(needed, None), fault(needed, "2.4.1"), fault(needed, "2.13.0+cpu")
        ('torch is missing', 'torch is 2.4.1, >=2.5,<3 is needed', '')
    """
    if version is None:
        return f"{requirement.name} is missing"
    for relation, bound in re.findall(r"(>=|<|==)\s*([\d.]+)", requirement.versions):
        least, own = _numbers(bound), _numbers(version)
        if {">=": own < least, "<": own >= least, "==": own != least}[relation]:
            return f"{requirement.name} is {version}, {requirement.versions} is needed"
    return ""


def _numbers(version: str) -> tuple[int, ...]:
    """Return the numbers of a release, as many for all, so that 2.5 and 2.5.0 are equal."""
    numbers = [int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:4]]
    return (*numbers, *[0] * (4 - len(numbers)))
