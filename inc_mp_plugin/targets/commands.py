"""The commands to run on a Gaudi with the files of a target."""

from __future__ import annotations

import shlex
from collections.abc import Collection
from dataclasses import dataclass
from importlib.resources import files
from string import Template
from typing import Any

from inc_mp_plugin.core.demands import Serving
from inc_mp_plugin.core.request import Request

# Models to which its run_lm_eval.py passes the options of attention on; Mixtral has one attention only. All
# others it runs in eager attention. --reuse_cache changes nothing there: it scores prompts, in one pass each.
_SCORED_AS_TOLD = frozenset(
    f"{model}Attention" for model in ("Falcon", "Gemma", "Llama", "Mistral", "Mixtral", "Qwen2", "Starcoder2")
)

# A warm-up before the tasks would put made-up tokens into the measurement.
_MEASURE_BY_TASK = """run_lm_eval.py "${options[@]}" --batch_size 1 \\
      -o measured.json --warmup 0 --tasks "${DATASET:-piqa}" --limit 256"""
_MEASURE_BY_TEXT = """run_generation.py "${options[@]}" --batch_size 1 \\
      --dataset_name "${DATASET:-NeelNanda/pile-10k}" --column_name text --dataset_max_samples 256 \\
      --max_input_tokens 512 --max_new_tokens 32"""
_REFUSE_ACCURACY = """\
    if [ -n "$plan" ]; then
      echo "run_lm_eval.py runs this model in eager attention whatever it is told; the plan is for flash." \\
        "For accuracy: inc-mp solve DIR attention=eager, inc-mp emit, and measure with those files" >&2
      exit 2
    fi
"""

# What scripts ask for where a recipe has no request.
SCRIPT_REQUEST = Request(prompt_tokens=1024, output_tokens=256)


@dataclass(frozen=True, slots=True)
class Deployment:
    """Subject of the commands: a model, the classes of its modules, and how it is served.

    `stats` is the folder of the measurements, with no slash at its end; `plan` is one line about the plan.
    """

    model: str
    classes: Collection[str]
    serving: Serving
    stats: str
    request: Request
    plan: str


class _Script(Template):
    """A script with @@name where data goes, for $ is the shell's."""

    delimiter = "@@"


def commands(target: str, deployment: Deployment) -> str:
    """Write a script for a consumer on Gaudi: it measures with INC, then runs with the plan.

    The script finds its files beside itself: <target>.json and <target>-measure.json.
    """
    data: dict[str, Any] = {
        "title": " ".join(deployment.model.split()),
        "plan": " ".join(deployment.plan.split()),
        "model": shlex.quote(deployment.model),
        "stats": shlex.quote(deployment.stats),
    }
    data |= _of_vllm(deployment) if target == "vllm-gaudi" else _of_optimum_habana(deployment)
    script = files("inc_mp_plugin.targets").joinpath("scripts", f"{target}.sh").read_text(encoding="utf-8")
    return _Script(script).substitute(data)


def _of_vllm(deployment: Deployment) -> dict[str, Any]:
    request = deployment.request
    return {
        "cache": "fp8_inc" if deployment.serving.kv_cache == "fp8" else "auto",
        "length": request.prompt_tokens + request.output_tokens,
    }


def _of_optimum_habana(deployment: Deployment) -> dict[str, Any]:
    serving, request = deployment.serving, deployment.request
    flash = serving.attention == "flash"
    attention = "\n  --use_flash_attention --flash_attention_recompute" if flash else ""
    kinds = {kind.removeprefix("Gaudi") for kind in deployment.classes if kind.endswith("Attention")}
    by_text = flash and not kinds <= _SCORED_AS_TOLD
    return {
        "options": attention + (" --reuse_cache" if serving.reuse_cache else ""),
        "data": "texts of the hub or in a folder, in a column text" if by_text else "a task of lm-eval",
        "measure": _MEASURE_BY_TEXT if by_text else _MEASURE_BY_TASK,
        "refusal": _REFUSE_ACCURACY if by_text else "",
        "batch_size": request.batch_size,
        "prompt_tokens": request.prompt_tokens,
        "new_tokens": max(request.output_tokens, 1),
    }
