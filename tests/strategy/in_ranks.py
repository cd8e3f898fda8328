"""One of several processes: plans the batches of its own, through INC and by `tune`, and says what it did."""

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

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)  # what the plugin says is counted
    mode, folder = sys.argv[1], Path(sys.argv[2])
    BATCHES = [{"input_ids": helpers.tokens(2, 16, seed)} for seed in range(5)]
    distributed.init_process_group("gloo")
    share = ranks.share(BATCHES) if mode != "one starves" else (BATCHES if ranks.rank() == 0 else [])
    TAU = 0.0001
    noise = mp.Noise("measured", mp.Scales("maxabs_arbitrary", "cpu"), ("fp8_e4m3",))
    said = {}
    if mode == "inc":

        def calibrate(model):
            with torch.no_grad():
                for batch in share:
                    model(**batch)

        config = mp.IPMSEConfig(tau=5 * TAU, dump_stats_path=str(folder / "measure"))
        model = quantize(helpers.language_model("llama"), config, run_fn=calibrate)
        names = [n for n, m in model.named_modules() if type(m).__name__.startswith("Patched")]
        said["quantized"] = sorted(names)
    elif mode == "alps":
        plan = mp.tune(helpers.language_model("llama"), share, strategy="alps", budget=0.8, out=folder)
        said["quantized"] = sorted(plan.quantized)
    elif mode == "ops":
        scored = []

        def score(formats):
            scored.extend(formats)
            return float(sum(map(ord, formats)))

        partial = Partial(folder / f"{ranks.rank()}.partial.npz", "key")
        said["values"] = mp.measure_alps(list("abcd"), ["int2"], score, partial).values["int2"]
        said["scored"] = scored
    else:
        tau = 1e-9 if mode == "no plan" else TAU
        gain = 1.0 if mode == "no plan" else None
        try:
            plan = mp.tune(
                helpers.language_model("llama"), share, tau=tau, gain_fraction=gain, noise=noise, out=folder
            )
            said["quantized"] = sorted(plan.quantized)
            said["loss_mse"] = plan.loss_mse
        except mp.InfeasibleError as error:
            said["error"] = str(error)
    Path(folder, f"said-{ranks.rank()}.json").write_text(json.dumps(said))
    distributed.destroy_process_group()
