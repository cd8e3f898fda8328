"""`inc-mp doctor`: what is installed, and what is missing for which feature."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path


def doctor() -> None:
    """Show versions, what is missing for which feature and how to get it, INC's device, and the machine."""
    from inc_mp_plugin.cli.show import show_blocks
    from inc_mp_plugin.report.doctor import features_table, machine_lines, versions_table
    from inc_mp_plugin.runtime.machine import this_machine
    from inc_mp_plugin.runtime.packages import installed, own_requirements

    tables = [versions_table(installed), features_table(own_requirements(), installed)]
    show_blocks([*tables, *machine_lines(this_machine(Path()), _inc_device())])


def _inc_device() -> str:
    """Say where INC quantizes for; only on a Gaudi's software is it asked, for it takes seconds to load."""
    if find_spec("neural_compressor") is None or find_spec("torch") is None:
        return "not installed"
    if find_spec("habana_frameworks") is None:
        return "quantizes for this CPU, where FP8 is emulated (habana_frameworks is not installed)"
    from inc_mp_plugin.inc.backend import is_cpu

    return "quantizes for this CPU: habana_frameworks finds no Gaudi" if is_cpu() else "quantizes for a Gaudi"
