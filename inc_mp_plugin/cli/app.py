"""The base of every command of `inc-mp`: the application, exit codes, and shared arguments."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, ParamSpec

import typer
from typer.core import TyperGroup

from inc_mp_plugin.core.errors import PluginError
from inc_mp_plugin.core.missing import not_installed
from inc_mp_plugin.runtime.progress import shown, tell

Arguments = ParamSpec("Arguments")

FIRST = """\
First:      inc-mp demo      tunes the small model that ships, in two minutes, into ./runs
Your own:   inc-mp recipes   what to begin with; then inc-mp tune my.yaml
If stuck:   inc-mp doctor    what is missing for which feature; inc-mp --help lists all commands"""

# The base of typer's errors of usage, for which it has no public name.
_UsageError: Any = typer.BadParameter.__mro__[1]


class Commands(TyperGroup):
    """The commands; typer's errors of usage are said as all others are, in one line."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run a command; see typer."""
        ends_process = options.pop("standalone_mode", True)
        code: Any
        try:
            code = super().main(*args, **{**options, "standalone_mode": False})
        except _UsageError as error:
            tell(f"Error: {_in_one_line(error)}")
            code = error.exit_code
        if ends_process:
            sys.exit(code or 0)
        return code


def _in_one_line(error: Any) -> str:
    command = error.ctx.command_path if error.ctx else "inc-mp"
    text = " ".join(error.format_message().split()).rstrip(".")
    text = re.sub(r"( Did you mean [^?]*\?)\1", r"\1", text)  # of typer 0.20 and of click, each adds its own
    return f"{text[:1].lower()}{text[1:]}; `{command} --help` shows what there is"


app = typer.Typer(
    cls=Commands,
    help="Decide which ops of a model run in FP8, within a bound on its KL divergence or loss.",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
)


def add(function: Callable[..., None], context_settings: dict[str, Any] | None = None) -> None:
    """Add a command; `context_settings` are typer's."""
    app.command(context_settings=context_settings)(reported(function))


def reported(function: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """Return the same function, with errors meant for the user as a line and an exit code."""

    @wraps(function)
    def guarded(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        try:
            with shown():
                function(*args, **kwargs)
        except PluginError as error:
            tell(f"Error: {error}")
            raise typer.Exit(error.exit_code) from None
        except ModuleNotFoundError as error:
            missing = not_installed([error.name])
            if missing is None:
                raise
            tell(f"Error: {missing}")
            raise typer.Exit(missing.exit_code) from None
        except KeyboardInterrupt:
            tell("Interrupted; the same command goes on where it stopped.")
            raise typer.Exit(1) from None

    return guarded


Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder that `inc-mp tune` wrote.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Keys of the recipe to override.")
]


AllowCode = Annotated[
    bool, typer.Option("--allow-code", help="Run the Python file that the recipe names as its loss.")
]


@app.callback()
def options(
    context: typer.Context,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Show what INC, torch and transformers log.")
    ] = False,
) -> None:
    """Decide which ops of a model run in FP8, within a bound on its KL divergence or loss."""
    if not verbose:
        from inc_mp_plugin.cli.quiet import silence_third_parties

        silence_third_parties()
    if context.invoked_subcommand is None:
        typer.echo(FIRST)
