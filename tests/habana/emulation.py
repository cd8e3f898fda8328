"""INC's own FP8 path for Gaudi, run on the CPU: measure, quantize, run, as optimum-habana's scripts do.

A plan costs a copy of a model, one `quantize` and one `run`; measurements are made once and kept as files:

    for names in plans:
        model = quantized("llama", "flash", folder, only(names))
        run(model, attention="flash", new_tokens=2)
"""

import contextlib
import copy
import dataclasses
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from models import gaudi, prompts
from neural_compressor.torch.algorithms.fp8_quant import model_configs
from neural_compressor.torch.algorithms.fp8_quant._core import measure as inc_measure
from neural_compressor.torch.algorithms.fp8_quant._core import patching_common
from neural_compressor.torch.quantization import FP8Config, convert, finalize_calibration, prepare
from torch import nn
from torch.overrides import TorchFunctionMode

# INC's number of outputs of a mixture of experts, which MEASURE overwrites for the rest of the process.
_EXPERT_OUTPUTS = patching_common._mod_types["dynamic_moe"].num_outputs


@dataclasses.dataclass(frozen=True)
class Run:
    """What a model computed.

    Attributes:
        tokens: The prompts and the tokens generated after them, shape (prompts, tokens).
        generated: Logits that `generate` saw at each step, shape (prompts, new tokens, vocabulary); the first
            is of prefill, the others of decode, out of the key and value caches.
        forward: Logits of one forward pass over all tokens, without caches, shape (prompts, tokens,
            vocabulary).
    """

    tokens: torch.Tensor
    generated: torch.Tensor
    forward: torch.Tensor

    @property
    def recomputed(self) -> torch.Tensor:
        """The forward pass's logits where `generate` computed its own, to compare the two."""
        new = self.generated.shape[1]
        return self.forward[:, -new - 1 : -1]


class _HpuIsCpu(TorchFunctionMode):
    """Reads the device "hpu" as the CPU, and lets FP8 tensors be written at an index, which a CPU cannot."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.index_copy_ and args[0].dtype.itemsize == 1:
            into, dim, index, source = args
            if source.dtype != into.dtype:
                message = f"index_copy_: {source.dtype} into {into.dtype}"
                raise RuntimeError(message)
            into.view(torch.uint8).index_copy_(dim, index, source.view(torch.uint8))
            return into
        args = [self._device(value) for value in args]
        return function(*args, **{key: self._device(value) for key, value in (kwargs or {}).items()})

    @staticmethod
    def _device(value):
        is_device = isinstance(value, str | torch.device)
        return torch.device("cpu") if is_device and str(value).split(":")[0] == "hpu" else value


@contextlib.contextmanager
def hpu_on_cpu() -> Iterator[None]:
    """Within it, code written for Gaudi runs on the CPU; without gradients."""
    with _HpuIsCpu(), torch.no_grad():
        yield


@contextlib.contextmanager
def _fresh_process(config: dict) -> Iterator[FP8Config]:
    """INC's configuration by way of a JSON file; INC remembers no other model, before or after."""

    def forget() -> None:
        model_configs.IMOD_DICT.clear()
        patching_common.parent_child_mod_dict.clear()
        inc_measure.gmod_list.clear()
        patching_common._mod_types["dynamic_moe"].num_outputs = _EXPERT_OUTPUTS

    forget()
    with tempfile.TemporaryDirectory() as folder, hpu_on_cpu():
        path = Path(folder) / "config.json"
        path.write_text(json.dumps(config))
        yield FP8Config.from_json_file(str(path))
    forget()


def measure(
    model: nn.Module,
    config: dict,
    *,
    attention: str = "eager",
    use_cache: bool = True,
    reuse_cache: bool = False,
) -> None:
    """Calibrates a model with INC in mode MEASURE; the files lie at the config's dump_stats_path.

    The model cannot be used again; take another copy.
    """
    with _fresh_process({**config, "mode": "MEASURE"}) as fp8:
        model = prepare(model, fp8)
        _generate(model, attention, 3, use_cache=use_cache, reuse_cache=reuse_cache, bucket_size=0)
        finalize_calibration(model)


def measured(name: str, attention: str, folder: Path) -> dict:
    """Base of every config of a model: scales measured with empty lists, at the first call for a folder."""
    path = Path(folder) / f"{name}_{attention}"
    config = {"dump_stats_path": str(path / "measure"), "scale_method": "maxabs_hw"}
    if not path.exists():
        path.mkdir(parents=True)
        measure(gaudi(name), config, attention=attention)
    return config


def quantize(model: nn.Module, config: dict) -> nn.Module:
    """Converts a model, in place, with INC in mode QUANTIZE and the files at the config's dump_stats_path."""
    with _fresh_process({**config, "mode": "QUANTIZE"}) as fp8:
        return convert(model, fp8)


def quantized(name: str, attention: str, folder: Path, lists: dict, **settings) -> nn.Module:
    """A copy of a model, quantized with these lists and settings and the measurements of a folder."""
    return quantize(gaudi(name), {**measured(name, attention, folder), **lists, **settings})


def _generate(
    model: nn.Module,
    attention: str,
    new_tokens: int,
    *,
    use_cache: bool = True,
    reuse_cache: bool,
    bucket_size: int,
):
    """optimum-habana's generation as its script sets it up: static shapes, greedy, to the full length."""
    flash = attention == "flash"
    config = copy.deepcopy(model.generation_config)
    config.update(
        max_new_tokens=new_tokens,
        do_sample=False,
        use_cache=use_cache,
        static_shapes=True,
        bucket_internal=bucket_size > 0,
        bucket_size=bucket_size if bucket_size > 0 else -1,
        reuse_cache=reuse_cache,
        use_flash_attention=flash,
        flash_attention_fast_softmax=flash,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return model.generate(**prompts(), generation_config=config, lazy_mode=True, ignore_eos=True)


def run(
    model: nn.Module,
    *,
    attention: str = "eager",
    reuse_cache: bool = False,
    bucket_size: int = 0,
    new_tokens: int = 3,
) -> Run:
    """Generates from `prompts()`, then runs one forward pass over prompts and new tokens.

    Args:
        model: A Gaudi model, quantized or not.
        attention: "eager" or "flash" (--use_flash_attention); Mixtral is always flash.
        reuse_cache: Whether the key and value caches are allocated once, in the model (--reuse_cache).
        bucket_size: Above 0, decode reads the caches in pieces of it (--bucket_internal --bucket_size).
        new_tokens: 0 runs the forward pass alone, 1 adds prefill with caches, more adds decode.

    Raises:
        Exception: Whatever the model raises for an illegal mix.
    """
    inputs = prompts()
    tokens, mask = inputs["input_ids"], inputs["attention_mask"]
    generated = torch.empty(len(tokens), 0, model.config.vocab_size)
    with hpu_on_cpu():
        if new_tokens:
            out = _generate(model, attention, new_tokens, reuse_cache=reuse_cache, bucket_size=bucket_size)
            tokens, generated = out.sequences, torch.stack(out.logits, dim=1).float()
            mask = torch.cat([mask, torch.ones_like(tokens[:, mask.shape[1] :])], dim=1)
        flash = {"use_flash_attention": attention == "flash"}
        forward = model(input_ids=tokens, attention_mask=mask, use_cache=False, **flash).logits.float()
    return Run(tokens, generated, forward)
