"""One of several processes: plans the batches of its own, through INC and by `tune`, and says what it did.

    in_ranks.py FOLDER MODE...

Each mode has a folder of its own in FOLDER.
"""

import json
import logging
import sys
from pathlib import Path

import helpers
import torch
from neural_compressor.torch.quantization import quantize
from torch import distributed

import inc_mp_plugin as mp
from inc_mp_plugin.runtime import ranks
from inc_mp_plugin.runtime.store import Partial

BATCHES = [{"input_ids": helpers.tokens(2, 16, seed)} for seed in range(5)]
TAU = 0.0001
NOISE = mp.Noise("measured", mp.Scales("maxabs_arbitrary", "cpu"), ("fp8_e4m3",))


def in_inc(share, folder):
    def calibrate(model):
        with torch.no_grad():
            for batch in share:
                model(**batch)

    config = mp.IPMSEConfig(tau=5 * TAU, dump_stats_path=str(folder / "measure"))
    model = quantize(helpers.language_model("llama"), config, run_fn=calibrate)
    names = [n for n, m in model.named_modules() if type(m).__name__.startswith("Patched")]
    return {"quantized": sorted(names)}


def by_alps(share, folder):
    plan = mp.tune(helpers.language_model("llama"), share, strategy="alps", budget=0.8, out=folder)
    return {"quantized": sorted(plan.quantized)}


def scores_of_ops(share, folder):
    scored = []

    def score(formats):
        scored.extend(formats)
        return float(sum(map(ord, formats)))

    partial = Partial(folder / f"{ranks.rank()}.partial.npz", "key")
    return {
        "values": mp.measure_alps(list("abcd"), ["int2"], score, partial).values["int2"],
        "scored": scored,
    }


def tuned(share, folder):
    plan = mp.tune(helpers.language_model("llama"), share, tau=TAU, noise=NOISE, out=folder)
    return {"quantized": sorted(plan.quantized), "loss_mse": plan.loss_mse}


def without_a_plan(share, folder):
    keys = {"tau": 1e-9, "gain_fraction": 1.0, "noise": NOISE}
    try:
        mp.tune(helpers.language_model("llama"), share, out=folder, **keys)
    except mp.InfeasibleError as error:
        return {"error": str(error)}


MODES = {
    "shared": tuned,
    "one starves": tuned,
    "alps": by_alps,
    "ops": scores_of_ops,
    "no plan": without_a_plan,
    "inc": in_inc,
}


if __name__ == "__main__":
    distributed.init_process_group("gloo")
    logging.getLogger("inc_mp_plugin").setLevel(logging.INFO)
    rank = ranks.rank()
    for mode in sys.argv[2:]:
        share = ranks.share(BATCHES)
        if mode == "one starves":
            share = BATCHES if rank == 0 else []
        folder = Path(sys.argv[1], mode)
        folder.mkdir(exist_ok=True)
        log = logging.FileHandler(folder / f"log-{rank}.txt")
        logging.getLogger().addHandler(log)
        said = MODES[mode](share, folder)
        logging.getLogger().removeHandler(log)
        (folder / f"said-{rank}.json").write_text(json.dumps(said))
    distributed.destroy_process_group()
