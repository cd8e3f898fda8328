"""One process of the two that INC's own examples use; killed in the middle of a stage if one is named."""

import json
import os
import signal
import sys

import helpers
import torch
from neural_compressor.torch.quantization import FP8Config, convert, finalize_calibration, prepare

import inc_mp_plugin as mp
from inc_mp_plugin.pipeline import tune


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    mode, path, stage = sys.argv[1:]
    mp.register()

    if stage == "finalize":
        tune.gains_stage = die  # sensitivities are written, the plan is not
    if stage == "convert":
        tune.plan_stage = die
    model, config = helpers.language_model("llama"), FP8Config.from_json_file(path)
    if mode == "MEASURE":
        model = prepare(model, config)
        with torch.no_grad():
            for seed in range(3):
                model(input_ids=helpers.tokens(2, 16, seed))
                if stage == "calibrate":
                    die()
        finalize_calibration(model)
    else:
        model = convert(model, config)
        print(
            json.dumps(sorted(n for n, m in model.named_modules() if type(m).__name__.startswith("Patched")))
        )
