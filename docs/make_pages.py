"""Write the pages of the site that follow from the code: keys of a recipe, commands, public names.

python docs/make_pages.py
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import typer.main
from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo

import inc_mp_plugin
import inc_mp_plugin.cli.main as _all_commands  # noqa: F401 - adds them to the app
from inc_mp_plugin.cli.app import app
from inc_mp_plugin.pipeline.recipe import Recipe

PAGES = Path(__file__).parent / "pages"
_NEEDED = {("emit", "--target"), ("export", "--out")}  # options that a command asks for itself
_KINDS = {"object": "mapping", "string": "text", "null": "null"}


def main() -> None:
    """Write the pages."""
    for name, text in pages().items():
        (PAGES / name).write_text(text, encoding="utf-8")


def pages() -> dict[str, str]:
    """Make the pages, by the names of their files."""
    return {"keys.md": keys_page(), "commands.md": commands_page(), "api.md": api_page()}


def keys_page() -> str:
    """Make the page of all keys, from the schema of recipes."""
    lines = [
        "# Keys of a recipe",
        "",
        "Any key can be given on the command line, too, after the recipe: `kl=0.001`, "
        "`calibration.samples=32`; `confidence=null` takes a key of the recipe away. A key that is not "
        "here is refused.",
        "",
        "## At the top",
        "",
        *_keys(Recipe),
    ]
    for name, field in Recipe.model_fields.items():
        section = _section(field)
        if section is not None:
            lines += ["", f"## {name}", "", " ".join((section.__doc__ or "").split()), "", *_keys(section)]
    return "\n".join(lines) + "\n"


def _keys(section: type[BaseModel]) -> Iterator[str]:
    yield "| key | value | default | meaning |"
    yield "|---|---|---|---|"
    for name, field in section.model_fields.items():
        inner = _section(field)
        values: Any = field.annotation
        kind = f"[section](#{name})" if inner else _kind(TypeAdapter(values).json_schema())
        yield f"| `{name}` | {kind} | {_default(field)} | {field.description} |"


def _section(field: FieldInfo) -> type[BaseModel] | None:
    kinds = (field.annotation, *get_args(field.annotation))
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def _kind(schema: dict[str, Any]) -> str:
    """Name the values of a key as they are written in a recipe."""
    if "anyOf" in schema:
        return ", ".join(_kind(part) for part in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"list of {_kind(schema['items'])}"
    kind = str(schema.get("type", "any"))
    return f"`{_KINDS[kind]}`" if kind == "null" else _KINDS.get(kind, kind)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.default
    if value is None or isinstance(value, BaseModel):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`[{', '.join(value)}]`" if isinstance(value, tuple) else f"`{value}`"


def commands_page() -> str:
    """Make the page of all commands, from the command line itself."""
    group: Any = typer.main.get_command(app)  # a group, of typer's own copy of click
    lines = [
        "# Commands",
        "",
        "`inc-mp COMMAND --help` says the same. Exit codes: 0 done, 2 your input, 3 no plan meets the "
        "constraint, 1 anything else.",
    ]
    for name, command in group.commands.items():
        lines += ["", f"## inc-mp {name}", "", _words(command.help), "", *_parameters(command)]
    return "\n".join(lines).rstrip() + "\n"


def _parameters(command: Any) -> Iterator[str]:
    rows = [(_name(p), _words(getattr(p, "help", None)), p) for p in command.params if p.name != "help"]
    if not rows:
        return
    yield "| argument | default | meaning |"
    yield "|---|---|---|"
    for name, words, parameter in rows:
        plain = isinstance(parameter.default, int | float | str) and not isinstance(parameter.default, bool)
        shown = f"`{parameter.default}`" if plain and parameter.default != "" else ""
        needed = parameter.required or (command.name, name) in _NEEDED
        default = "required" if needed else shown
        yield f"| `{name}` | {default} | {words} |"


def _name(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return _cell(str(parameter.metavar or parameter.name).strip("{}[].").upper())
    return str(max(parameter.opts, key=len))


def api_page() -> str:
    """Make the page of all public names; the site's builder puts their docstrings in."""
    homes = {name: getattr(inc_mp_plugin, name) for name in dir(inc_mp_plugin)}
    kinds: dict[str, list[str]] = {"Functions": [], "Values": [], "Errors": []}
    for name, value in homes.items():
        of_error = isinstance(value, type) and issubclass(value, Exception)
        kind = "Errors" if of_error else "Values" if isinstance(value, type) else "Functions"
        kinds[kind].append(f"::: {value.__module__}.{name}")
    lines = ["# API", "", "`import inc_mp_plugin as mp`: everything here is a name of `mp`."]
    for kind, names in kinds.items():
        lines += ["", f"## {kind}", "", "\n\n".join(names)]
    return "\n".join(lines) + "\n"


def _words(text: str | None) -> str:
    return _cell(" ".join((text or "").split()))


def _cell(text: str) -> str:
    """Keep a text in its cell of a table."""
    return text.replace("|", "\\|")


if __name__ == "__main__":
    main()
