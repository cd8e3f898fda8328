"""Weights spread over processes give the sensitivities of one process, and no process holds them all."""

import json
from pathlib import Path

import helpers
import numpy as np
import pytest
from in_shards import CASES, FORMATS, SCALES
from processes import torchrun
from torch.distributed import fsdp

import inc_mp_plugin as mp
from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.model.subject import subject_in_memory
from inc_mp_plugin.stages.job import Job
from inc_mp_plugin.stages.sensitivity import measure
from inc_mp_plugin.stages.sensitivity_arrays import to_arrays


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def spread(request, tmp_path_factory):
    """The number of processes, and what in_shards.py wrote in so many."""
    if not hasattr(fsdp, "fully_shard"):
        pytest.skip("FSDP2 came with torch 2.6")
    folder = tmp_path_factory.mktemp(f"shards-{request.param}")
    done = torchrun(Path(__file__).parent / "in_shards.py", folder, processes=request.param)
    assert done.returncode == 0, done.stderr
    return request.param, folder


@pytest.mark.parametrize("name", CASES)
def test_processes_that_share_the_weights_measure_as_one_does(spread, name):
    case, (_, folder) = CASES[name], spread
    model = helpers.language_model(case.model)
    alone = mp.measure_sensitivity(
        model,
        mp.capture(model, case.batches[0]),
        case.batches,
        yardstick="both",
        estimate=case.estimate,
        scales=SCALES,
        formats=FORMATS,
        memory="high",
    )
    with np.load(folder / name / "sensitivity.npz", allow_pickle=False) as arrays:
        together = dict(arrays)
    for key, array in to_arrays(alone).items():
        if array.dtype.kind == "f":
            np.testing.assert_allclose(together[key], array, rtol=1e-6, err_msg=key)
        else:
            assert (together[key] == array).all(), key


@pytest.mark.parametrize("name", CASES)
def test_every_process_holds_its_share_of_the_weights_before_and_after(spread, name):
    processes, folder = spread
    shares = [json.loads((folder / name / f"shares-{rank}.json").read_text()) for rank in range(processes)]
    parameters = dict(helpers.language_model(CASES[name].model).named_parameters())
    for moment in (0, 1):
        for key, parameter in parameters.items():
            held = [share[moment][key][0] for share in shares]
            rows, width = len(parameter), parameter[0].numel()
            assert sum(held) == parameter.numel(), key
            assert max(held) == -(-rows // processes) * width, key  # no more than a share of the rows


def test_blocks_that_do_not_run_in_order_and_weights_of_two_blocks_are_refused(spread):
    processes, folder = spread
    for rank in range(processes):
        said = json.loads((folder / f"refused-{rank}.json").read_text())
        assert "a pass ran 2 blocks (model.layers.0, model.layers.1)" in said["order"]
        assert "model.layers.1.mlp.up_proj.weight is the weight of another block" in said["shared"]


def test_experts_are_refused(tmp_path):
    model, batches = helpers.mixture("qwen3_moe"), CASES["uneven"].batches
    job, subject = Job(base="fp32", parallel="fsdp"), subject_in_memory(model, batches, None)
    with pytest.raises(
        InputError, match=r"^experts \(\S+, .*more\) cannot be measured with run: .parallel: fsdp"
    ):
        measure(job, subject, mp.capture(model, batches[0]), tmp_path)


def test_one_process_has_nothing_to_spread_the_model_over(project, tmp_path):
    result = helpers.call("tune", project / "recipe.yaml", "run.parallel=fsdp", "--out", tmp_path)
    assert result.exit_code == 2
    assert "spreads the model over processes, and there is one; start several: torchrun" in helpers.told(
        result
    )
    assert not list(tmp_path.iterdir())
