"""Adapters of PEFT: beside their base layers as ops of their own, or merged into them."""

import json
import shutil

import helpers
import naive
import pytest
import torch
import transformers

import inc_mp_plugin as mp
from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.model import adapters
from inc_mp_plugin.model.loading import load_config, load_model, load_tokenizer, model_fingerprint
from inc_mp_plugin.model.losses import default_loss

peft = pytest.importorskip("peft")

BATCH = {"input_ids": helpers.tokens(2), "attention_mask": torch.ones(2, 12, dtype=torch.long)}
PREFIX = "base_model.model."


def lora(**changes):
    return peft.LoraConfig(
        r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False, lora_dropout=0.1, **changes
    )


@pytest.fixture(scope="module")
def adapted():
    model = helpers.language_model("llama", num_hidden_layers=1)
    torch.manual_seed(1)
    return peft.get_peft_model(model, lora()).eval()


@pytest.fixture(scope="module")
def folder(project, tmp_path_factory):
    """Folder of an adapter of the project's model."""
    base = transformers.AutoModelForCausalLM.from_pretrained(project / "model")
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("adapters") / "adapter"
    peft.get_peft_model(base, lora()).save_pretrained(path)
    return path


def test_ops_have_the_names_of_pefts_modules(adapted):
    graph = mp.capture(adapted, BATCH)
    names = {op.name for op in graph.ops if ".self_attn.q_proj" in op.name}
    layer = f"{PREFIX}model.layers.0.self_attn.q_proj"
    assert names == {f"{layer}.base_layer", f"{layer}.lora_B.default"}
    assert f"{PREFIX}model.layers.0.self_attn.k_proj" in graph.by_name
    reasons = {product.name: product.reason for product in graph.unsupported}
    assert "casts its input" in reasons[f"{layer}.lora_A.default"] and len(reasons) == 2


def test_sensitivities_are_those_of_naive_autograd(adapted):
    sensitivity = mp.measure_sensitivity(adapted, mp.capture(adapted, BATCH), [BATCH])
    naive.assert_sensitivities_agree(sensitivity, adapted, BATCH, default_loss)


def test_the_plan_is_what_inc_converts(tmp_path):
    model = peft.get_peft_model(helpers.language_model("llama", num_hidden_layers=1), lora()).eval()
    before = default_loss(model, BATCH)
    plan = mp.tune(model, [BATCH], gain_fraction=1.0, out=tmp_path)
    converted = mp.apply(model, plan, [BATCH])
    patched = {name for name, m in converted.named_modules() if type(m).__name__.startswith("Patched")}
    assert patched == set(plan.quantized) and any("lora_B" in name for name in patched)
    losses = default_loss(converted, BATCH)
    assert losses.isfinite().all() and not torch.equal(losses, before)
    torch.testing.assert_close(losses, before, rtol=0.05, atol=0)


@pytest.mark.parametrize("target", ["vllm-gaudi", "optimum-habana"])
def test_gaudi_wants_them_merged(adapted, target):
    graph = mp.capture(adapted, BATCH)
    gains = mp.memory_gains(graph, ("fp32", "fp8_e4m3"))
    sensitivity = mp.measure_sensitivity(adapted, graph, [BATCH])
    demands = mp.demands(graph, [target])
    plan = mp.solve(gains, sensitivity, gain_fraction=0.3, demands=demands)
    with pytest.raises(InputError, match=f"target {target} .*merge_adapters: true in a recipe"):
        mp.to_inc_config(plan, target, graph)


@torch.no_grad()
def test_a_loaded_adapter_computes_what_peft_computes(project, folder):
    base = transformers.AutoModelForCausalLM.from_pretrained(project / "model")
    expected = peft.PeftModel.from_pretrained(base, folder).eval()(**BATCH).logits
    model = load_model(str(folder), "fp32", trust_remote_code=False)
    assert isinstance(model, peft.PeftModel) and not model.training
    torch.testing.assert_close(model(**BATCH).logits, expected)
    merged = load_model(str(folder), "fp32", trust_remote_code=False, merge_adapters=True)
    assert type(merged) is transformers.LlamaForCausalLM and not merged.training
    torch.testing.assert_close(merged(**BATCH).logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("merge", [True, False])
def test_all_of_it_is_in_the_base_format(folder, merge):
    model = load_model(str(folder), "bf16", trust_remote_code=False, merge_adapters=merge)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_configuration_and_tokenizer_are_those_of_the_base_model(folder):
    assert load_config(str(folder), {}, trust_remote_code=False).model_type == "llama"
    assert load_tokenizer(str(folder), trust_remote_code=False)("a")["input_ids"]


def test_both_parts_identify_it(folder, project, tmp_path):
    identity = model_fingerprint(str(folder), trust_remote_code=False)
    assert model_fingerprint(str(project / "model"), trust_remote_code=False) in identity
    other = shutil.copytree(folder, tmp_path / "other")
    settings = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps({**settings, "lora_alpha": 1}))
    assert model_fingerprint(str(other), trust_remote_code=False) != identity


def test_a_recipe(project, folder, tmp_path):
    options = [f"model.name_or_path={folder}", "tau=0.01", "validation.random_plans=3"]
    refused = helpers.call("tune", project / "recipe.yaml", *options, "--out", tmp_path / "a")
    assert refused.exit_code == 2 and "model.merge_adapters: true" in helpers.told(refused)
    merged = helpers.call(
        "tune", project / "recipe.yaml", *options, "model.merge_adapters=true", "--out", tmp_path / "b"
    )
    assert merged.exit_code == 0, merged.output
    assert "base_layer" not in (tmp_path / "b" / "graph.json").read_text()
    assert helpers.read(tmp_path / "b", "validation.json")["nrmse"] > 0
    assert "adapter-merged" in (tmp_path / "b" / "configs" / "optimum-habana.sh").read_text()
    dry = helpers.call(
        "tune", project / "recipe.yaml", *options, "targets=[cpu-qdq]", "--dry-run", "--out", tmp_path / "c"
    )
    assert dry.exit_code == 0, dry.output
    assert "q_proj.base_layer" in (tmp_path / "c" / "graph.json").read_text()


def test_an_adapter_without_all_its_weights(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    broken = shutil.copytree(folder, tmp_path / "broken")
    weights = load_file(broken / "adapter_model.safetensors")
    del weights[sorted(weights)[0]]
    save_file(weights, broken / "adapter_model.safetensors")
    with pytest.raises(InputError, match="hold no .*lora_A.weight, which would be random numbers"):
        load_model(str(broken), "fp32", trust_remote_code=False)


def test_an_adapter_without_a_base_model(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    settings = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": None}))
    with pytest.raises(InputError, match="names no base model"):
        load_model(str(other), "fp32", trust_remote_code=False)


def test_an_adapter_of_another_model(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    settings = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps({**settings, "target_modules": ["query"]}))
    with pytest.raises(InputError, match="the adapter .* cannot be loaded: Target modules"):
        load_model(str(other), "fp32", trust_remote_code=False)


def test_prompts_cannot_be_merged(project, tmp_path):
    base = transformers.AutoModelForCausalLM.from_pretrained(project / "model")
    settings = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    peft.get_peft_model(base, settings).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="PROMPT_TUNING, which cannot be merged"):
        load_model(str(tmp_path), "fp32", trust_remote_code=False, merge_adapters=True)


def test_nothing_to_merge(project):
    with pytest.raises(InputError, match="is no folder of an adapter"):
        load_model(str(project / "model"), "fp32", trust_remote_code=False, merge_adapters=True)


def test_peft_is_not_installed(folder, monkeypatch):
    monkeypatch.setattr(adapters, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="an adapter of PEFT, which is not installed; pip install peft"):
        load_model(str(folder), "fp32", trust_remote_code=False)
