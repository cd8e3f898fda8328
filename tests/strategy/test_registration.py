"""`ip_mse` becomes known to INC when somebody asks for it, and not when a file is imported."""

import subprocess
import sys

import pytest

LOOK = """
import neural_compressor.torch.quantization
from neural_compressor.torch.algorithms import fp8_quant
from neural_compressor.torch.utils.utility import algos_mapping
own = (fp8_quant.load, fp8_quant.save_calib_result, algos_mapping["fp8_quant"])
def known():
    now = (fp8_quant.load, fp8_quant.save_calib_result, algos_mapping["fp8_quant"])
    changed = [one is not other for one, other in zip(own, now)]
    assert len(set(changed)) == 1, changed
    assert ("ip_mse" in algos_mapping) == changed[0]
    return changed[0]
"""
IMPORTS = """
import inc_mp_plugin as mp
import inc_mp_plugin.strategy.entry, inc_mp_plugin.strategy.config, inc_mp_plugin.strategy.flow
import inc_mp_plugin.inc.convert
for name in mp.__all__:
    getattr(mp, name)
assert not known()
"""


def run(code):
    result = subprocess.run(
        [sys.executable, "-c", LOOK + IMPORTS + code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    "asked",
    [
        pytest.param("mp.register()", marks=pytest.mark.slow),
        pytest.param("import inc_mp_plugin.ip_mse", marks=pytest.mark.slow),
        "mp.IPMSEConfig(tau=0.01)",
    ],
    ids=["register", "the module ip_mse", "a configuration"],
)
def test_asking_for_it_registers_and_importing_does_not(asked):
    run(f"{asked}\nassert known()\n")


@pytest.mark.slow
def test_a_second_time_changes_nothing():
    run("mp.register(); first = dict(algos_mapping); mp.register(); assert algos_mapping == first\n")
