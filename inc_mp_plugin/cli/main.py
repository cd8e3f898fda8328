"""The command line: all commands, in the order of `inc-mp --help`."""

from __future__ import annotations

import os
import sys

from inc_mp_plugin.cli.app import add, app
from inc_mp_plugin.cli.check import check
from inc_mp_plugin.cli.demo import demo
from inc_mp_plugin.cli.diff import diff
from inc_mp_plugin.cli.doctor import doctor
from inc_mp_plugin.cli.emit import emit
from inc_mp_plugin.cli.experiment import experiment
from inc_mp_plugin.cli.explain import explain
from inc_mp_plugin.cli.export import export
from inc_mp_plugin.cli.frontier import frontier
from inc_mp_plugin.cli.recipes import recipes
from inc_mp_plugin.cli.report import report
from inc_mp_plugin.cli.run import ANY_ARGUMENTS, run
from inc_mp_plugin.cli.solve import solve
from inc_mp_plugin.cli.tune import tune
from inc_mp_plugin.cli.validate import validate

add(demo)
add(recipes)
add(tune)
add(solve)
add(explain)
add(diff)
add(frontier)
add(validate)
add(experiment)
add(run, ANY_ARGUMENTS)
add(report)
add(emit)
add(export)
add(check)
add(doctor)


def main() -> None:
    """Run the command line as a process of its own."""
    try:
        app()
    except SystemExit as error:
        if error.code == 1:
            # Python kills itself by SIGINT at its end if Ctrl-C ever left an exec(), even when it was
            # handled; torch.export executes generated code, and the exit code is to be 1.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1)
        raise
