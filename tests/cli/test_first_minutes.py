"""The first minutes: no command, a wrong one, completion, and the state of an installation."""

import os
import subprocess
import sys
from importlib import metadata

import pytest
from helpers import call, told

from inc_mp_plugin.report.doctor import features_table, machine_lines, versions_table
from inc_mp_plugin.runtime.machine import Machine, this_machine
from inc_mp_plugin.runtime.packages import Requirement, fault, requirements


def test_without_a_command_three_lines_say_what_to_do():
    result = call()
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert len(lines) == 3
    for command in ("inc-mp doctor", "inc-mp --help"):
        assert command in result.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["tunee", "x"],
            "Error: no such command 'tunee'. Did you mean 'tune'?; `{} --help` shows what there is",
        ),
        (["solve"], "Error: missing argument 'DIR'; `{} solve --help` shows what there is"),
        (["frontier", ".", "--point", "3"], "--points"),
        (["frontier", ".", "--points", "1"], "Error: invalid value for '--points':"),
    ],
)
def test_faults_of_usage_are_one_line_as_all_others(arguments, said):
    result = call(*arguments)
    assert result.exit_code == 2
    assert len(result.output.splitlines()) == 1
    assert said.format("root") in result.output.replace("inc-mp", "root")


def test_help_and_a_command_end_as_before(finished):
    assert call("--help").exit_code == 0
    assert call("explain", finished).exit_code == 0


def test_shells_complete_commands():
    code = "from inc_mp_plugin.cli.main import app; app(prog_name='inc-mp')"
    asked = {"_INC_MP_COMPLETE": "complete_bash", "COMP_WORDS": "inc-mp ex", "COMP_CWORD": "1"}
    result = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **asked}, capture_output=True, text=True, check=False
    )
    assert result.stdout.split() == ["explain", "experiment", "export"]


def test_doctor_says_the_versions_that_are_installed():
    result = call("doctor")
    assert result.exit_code == 0, result.output
    said = told(result)
    for package in ("torch", "neural-compressor", "highspy"):
        assert f"{package} │ {metadata.version(package)}" in " ".join(said.split())
    assert "INC: quantizes for " in said
    assert "plans of a folder: solve, explain, diff, frontier │ there" in said


NEEDED = requirements(
    [
        "highspy>=1.7.1",
        'torch>=2.5; extra == "inc"',
        'neural-compressor[pt]<4,>=3.5; extra == "inc"',
        'matplotlib>=3.8 ; extra == "report"',
        'inc_mp_plugin[report]; extra == "test"',
    ]
)


def test_requirements_of_metadata():
    assert list(NEEDED) == [
        Requirement("highspy", ">=1.7.1", ""),
        Requirement("torch", ">=2.5", "inc"),
        Requirement("neural-compressor", "<4,>=3.5", "inc"),
        Requirement("matplotlib", ">=3.8", "report"),
        Requirement("inc_mp_plugin", "", "test"),
    ]


@pytest.mark.parametrize(
    ("versions", "version", "does"),
    [
        (">=2.5", "2.13.0+cpu", True),
        (">=2.5", "2.5", True),
        (">=2.5.1", "2.5", False),
        ("<4,>=3.5", "4.0", False),
        ("<4,>=3.5", "3.10", True),
        ("==0.1.2", "0.1.3", False),
        ("==0.1", "0.1.0", True),
        ("", "1", True),
    ],
)
def test_versions_are_compared_by_their_numbers(versions, version, does):
    assert (fault(Requirement("x", versions), version) == "") == does


def test_what_is_missing_is_named_with_its_command():
    there = {"highspy": "1.7.1", "torch": "2.4.1"}
    rows = features_table(NEEDED, there.get).rows
    assert rows[0] == ("plans of a folder: solve, explain, diff, frontier", "there", "")
    assert rows[1][1:] == (
        "torch is 2.4.1, >=2.5 is needed; neural-compressor is missing",
        "pip install 'inc_mp_plugin[inc]'",
    )
    assert rows[2][1:] == ("matplotlib is missing", "pip install 'inc_mp_plugin[report]'")
    assert len(rows) == 3
    assert ("torch", "2.4.1") in versions_table(there.get).rows
    assert ("optimum-habana", "-") in versions_table(there.get).rows


def test_the_machine(tmp_path):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable: 2000000 kB\n")
    (tmp_path / "proc" / "cpuinfo").write_text("processor: 0\nflags\t\t: fpu avx2 avx512f sse2\nbugs : x\n")
    machine = this_machine(tmp_path, tmp_path)
    assert (machine.instruction_sets, machine.free_memory) == (("avx2", "avx512f"), 2_048_000_000)
    lines = machine_lines(machine, "quantizes for this CPU")
    assert (
        "Instruction sets: avx2, avx512f; without BF16 instructions, BF16 products may be slower" in lines[1]
    )
    assert lines[2].startswith("Free: 2.0 GB of memory, ")
    with_bf16 = machine_lines(Machine(2, ("avx512_bf16",), None, 10**9), "x")
    assert with_bf16[1:] == [
        "Cores: 2. Instruction sets: avx512_bf16.",
        "Free: unknown of memory, 1.0 GB of disk here.",
    ]
