"""One of several processes: measures batches of its own, on a model whose weights are spread over all.

    in_shards.py FOLDER

Each case has a folder of its own in FOLDER; the first process writes what all of them measured.
"""

import json
import logging
import sys
from dataclasses import dataclass
from pathlib import Path

import helpers
import numpy as np
from torch import distributed

import inc_mp_plugin as mp
from inc_mp_plugin.core.blocks import repeated_blocks
from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.core.estimate import Estimate
from inc_mp_plugin.libraries.torch import local_part
from inc_mp_plugin.model.sharded import sharded
from inc_mp_plugin.runtime import ranks
from inc_mp_plugin.runtime.store import Partial
from inc_mp_plugin.sensitivity.resume import measure_in_steps
from inc_mp_plugin.stages.sensitivity_arrays import to_arrays

SCALES, FORMATS = mp.Scales("maxabs_arbitrary", "cpu"), ("fp8_e4m3",)


@dataclass(frozen=True)
class Case:
    """A model, the samples in each batch, the memory of a pass, and whether the first process has all."""

    model: str
    sizes: tuple[int, ...]
    memory: str = "low"
    starved: bool = False
    estimate: Estimate = Estimate(draws=2)

    @property
    def batches(self):
        return [{"input_ids": helpers.tokens(size, seed=n)} for n, size in enumerate(self.sizes)]

    @property
    def share(self):
        if self.starved:
            return self.batches if ranks.rank() == 0 else []
        return ranks.share(self.batches)


# With a first batch of one sample, a process does not try if samples are separate; others do.
CASES = {
    "uneven": Case("llama", (2, 2, 2, 2, 2)),
    "high memory": Case("llama", (2, 2, 1, 1, 3), "high"),
    "starved": Case("gpt2", (2, 1), starved=True),
    "batches": Case("opt", (1, 3), "high", estimate=Estimate("batch")),
}


def measured(case, folder):
    model = helpers.language_model(case.model)
    graph = mp.capture(model, case.batches[0])
    with sharded(model, repeated_blocks(graph)):
        shares = {name: [local_part(p).numel(), p.numel()] for name, p in model.named_parameters()}
        sensitivity = measure_in_steps(
            model,
            graph,
            case.share,
            None,
            partial=Partial(folder / f"partial-{ranks.rank()}.npz", "key"),
            kl=case.estimate,
            scales=SCALES,
            formats=FORMATS,
            memory=case.memory,
        )
        after = {name: [local_part(p).numel(), p.numel()] for name, p in model.named_parameters()}
    (folder / f"shares-{ranks.rank()}.json").write_text(json.dumps([shares, after]))
    if ranks.rank() == 0:
        np.savez(folder / "sensitivity.npz", **to_arrays(sensitivity))


def refusals():
    """What is said of blocks that do not run, and of a weight of two blocks."""
    said = {}
    model = helpers.language_model("llama")
    try:
        with sharded(model, ("model.layers.1", "model.layers.0")):
            model(**CASES["uneven"].batches[0])
    except InputError as error:
        said["order"] = str(error)
    model = helpers.language_model("llama")
    model.model.layers[1].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    try:
        with sharded(model, ("model.layers.0", "model.layers.1")):
            pass
    except InputError as error:
        said["shared"] = str(error)
    return said


if __name__ == "__main__":
    distributed.init_process_group("gloo")
    logging.getLogger("inc_mp_plugin").setLevel(logging.INFO)
    for name, case in CASES.items():
        own = Path(sys.argv[1], name)
        own.mkdir(exist_ok=True)
        measured(case, own)
    Path(sys.argv[1], f"refused-{ranks.rank()}.json").write_text(json.dumps(refusals()))
    distributed.destroy_process_group()
