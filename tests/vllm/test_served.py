"""Measuring in a server, with transformers behind vLLM's interface; `test_server.py` has vLLM itself."""

import json
import shutil
import sys

import helpers
import pytest
import torch
import transformers
from helpers import call, read, told
from safetensors.torch import load_file

from inc_mp_plugin.core.errors import InputError, NonFiniteError
from inc_mp_plugin.model.served import ServedModel, Server, ServerFacts
from inc_mp_plugin.pipeline.folder import Run

# What the script asks of vLLM. Weights in FP8 are multiplied by their scales; activations are not rounded.
STAND_IN = '''
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import torch

__version__ = "0.0"


def SamplingParams(**settings):
    return None


class Model(torch.nn.Module):
    """Prompts one after the other, as hidden states; logits apart."""

    def __init__(self, folder, dtype):
        import transformers
        from safetensors.torch import load_file

        super().__init__()
        tensors = load_file(Path(folder, "model.safetensors"))
        weights = {}
        for name, tensor in tensors.items():
            scale = tensors.get(f"{name}_scale")
            weights[name] = tensor.float() if scale is None else tensor.float() * scale.float()
        config = transformers.AutoConfig.from_pretrained(folder)
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        self.whole = transformers.AutoModelForCausalLM.from_config(config)
        self.whole.load_state_dict({k: v for k, v in weights.items() if not k.endswith("_scale")})
        self.whole.to(dtype)

    def forward(self, input_ids, positions):
        ends = [*(positions == 0).nonzero().flatten().tolist()[1:], len(positions)]
        parts, start = [], 0
        for end in ends:
            parts.append(self.whole.model(input_ids[None, start:end]).last_hidden_state[0])
            start = end
        return torch.cat(parts)

    def compute_logits(self, hidden):
        return self.whole.lm_head(hidden)


class LLM:
    def __init__(self, folder, dtype, **settings):
        print("vLLM talks on standard output")
        how = os.environ.get("STAND_IN")
        if how == "fails":
            raise ValueError("no such kernel")
        if how == "skips":
            print("Parameter q_proj.k_scale not found in params_dict, skip loading", file=sys.stderr)
        dtype = torch.float32 if dtype == "float32" else torch.bfloat16
        self.model = Model(folder, dtype) if how is None else torch.nn.Linear(1, 1)
        self.llm_engine = SimpleNamespace(model_config=SimpleNamespace(dtype=dtype))

    def apply_model(self, function):
        return [function(self.model)]

    def generate(self, prompts, settings, use_tqdm):
        samples = [prompt["prompt_token_ids"] for prompt in reversed(prompts)]  # in any order
        ids = torch.tensor([token for sample in samples for token in sample])
        positions = torch.tensor([place for sample in samples for place in range(len(sample))])
        with torch.no_grad():
            self.model(input_ids=ids, positions=positions)
'''


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """A Python whose `vllm` is the stand-in."""
    folder = tmp_path_factory.mktemp("stand-in")
    (folder / "vllm.py").write_text(STAND_IN)
    path = folder / "python"
    path.write_text(f'#!/bin/sh\nPYTHONPATH={folder} exec {sys.executable} "$@"\n')
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def server(python, project):
    made = Server(python, project / "model", dtype="float32", length=32)
    yield made
    made.stop()


def test_logits_are_those_of_the_model(server, project):
    """Of samples of several lengths, padded at either end, together and one by one; no process is left."""
    model = transformers.AutoModelForCausalLM.from_pretrained(project / "model")
    ids = helpers.tokens(3, 9)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    mask[2, :4] = 0
    for alone in (False, True):
        logits = ServedModel(server, alone=alone)(input_ids=ids, attention_mask=mask).logits
        for number in range(3):
            own = mask[number].bool()
            with torch.no_grad():
                expected = model(ids[number][own][None]).logits[0]
            torch.testing.assert_close(logits[number][own], expected, rtol=1e-5, atol=1e-6)
            assert not logits[number][~own].any()
    process, log = server._process, server._log
    server.stop()
    assert process.poll() is not None
    assert not log.exists()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("skips", "has no place for tensors of .*q_proj.k_scale not found in params_dict"),
        ("fails", "vLLM stopped with .*: ValueError: no such kernel"),
    ],
)
def test_failures_of_the_server(server, monkeypatch, how, message):
    monkeypatch.setenv("STAND_IN", how)
    with pytest.raises(InputError, match=message):
        ServedModel(server)(input_ids=helpers.tokens(1))


def test_nan_is_an_error(server, monkeypatch):
    facts = ServerFacts("0", "float32", {})
    monkeypatch.setattr(Server, "facts", facts)
    monkeypatch.setattr(server, "logits", lambda samples, alone: [torch.full((12, 3), torch.nan)])
    with pytest.raises(NonFiniteError, match="vLLM gives logits that are NaN"):
        ServedModel(server)(input_ids=helpers.tokens(1))


@pytest.mark.parametrize(
    ("command", "message"), [("/no/python", "cannot be run"), (sys.executable, "has no vLLM")]
)
def test_a_python_without_vllm(project, command, message):
    server = Server(command, project / "model", dtype="auto", length=8)
    with pytest.raises(InputError, match=message):
        ServedModel(server)(input_ids=helpers.tokens(1))
    server.stop()


@pytest.fixture(scope="module")
def exported(made_once, project):
    """A plan for vLLM, and its checkpoint."""

    def make(folder):
        overrides = ["targets=[vllm]", "kl=0.05", "validation.random_plans=3", "run.draws=2"]
        result = call("tune", project / "recipe.yaml", *overrides, "--out", folder / "run")
        assert result.exit_code == 0, result.output
        assert call("export", folder / "run", "--out", folder / "model").exit_code == 0

    return made_once("exported for vllm", make)


def naive_kl(base, plan, ids):
    """The mean over positions that have a next token, in FP64."""
    with torch.no_grad():
        p, q = (model(ids[None]).logits[0, :-1].double().log_softmax(dim=-1) for model in (base, plan))
    return (p.exp() * (p - q)).sum(dim=-1)


def test_a_plan_is_measured_in_the_server(exported, project, python, tmp_path):
    folder = shutil.copytree(exported / "run", tmp_path / "run")
    result = call(
        "validate", folder, "--through", "vllm", "--model", exported / "model",
        "--vllm-python", python, "--vllm-dtype", "float32",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "samples through vLLM itself" in told(result)
    assert "own KL between samples alone and in batches" in told(result)
    validation = read(folder, "validation.json")
    assert (validation["through"], validation["dtype"], validation["points"]) == ("vllm", "float32", [])
    base = transformers.AutoModelForCausalLM.from_pretrained(project / "model")
    plan = transformers.AutoModelForCausalLM.from_pretrained(project / "model")
    tensors = load_file(exported / "model" / "model.safetensors")
    for op in Run(folder).plan.quantized:
        codes, scale = tensors[f"{op}.weight"].float(), tensors[f"{op}.weight_scale"]
        plan.get_submodule(op).weight.data = codes * scale
    each = [naive_kl(base, plan, ids) for batch in Run(folder).meter.heldout for ids in batch["input_ids"]]
    assert validation["plan"]["kl"]["measured"] == pytest.approx(torch.cat(each).mean().item(), rel=1e-3)
    assert validation["kl"]["floor"] < 1e-8


@pytest.mark.slow
def test_bf16_has_a_floor(exported, python, tmp_path):
    folder = shutil.copytree(exported / "run", tmp_path / "run")
    result = call(
        "validate", folder, "--through", "vllm", "--model", exported / "model", "--vllm-python", python
    )
    assert result.exit_code == 0, result.output
    validation = read(folder, "validation.json")
    assert validation["dtype"] == "bfloat16"
    assert validation["kl"]["floor"] > 1e-8
    assert "own KL between bfloat16 and float32 is" in told(result)


def with_other_ignore(folder):
    config = read(folder, "config.json")
    config["architectures"] = ["Other"]
    (folder / "config.json").write_text(json.dumps(config))


def test_a_checkpoint_of_another_plan_is_refused(exported, python, tmp_path):
    folder = shutil.copytree(exported / "run", tmp_path / "run")
    assert call("solve", folder, "gain_fraction=0.5").exit_code == 0
    arguments = ("validate", folder, "--through", "vllm", "--vllm-python", python, "--model")
    result = call(*arguments, exported / "model")
    assert result.exit_code == 2
    assert "is not of this plan" in told(result)
    model = shutil.copytree(exported / "model", tmp_path / "model")
    with_other_ignore(model)
    result = call(*arguments, model)
    assert result.exit_code == 2
    assert "not what was written, by SHA256SUMS: config.json" in told(result)


def test_the_options_go_together(exported):
    for options in (["--through", "vllm"], ["--model", exported / "model"]):
        result = call("validate", exported / "run", *options)
        assert result.exit_code == 2
        assert "--through vllm and --model go together" in told(result)
