"""Damaged checkpoints: each is one line, and none gives a model; what transformers only warns of is told."""

import json
import shutil

import helpers
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.model.loading import load_config, load_model, load_tokenizer

WEIGHTS, CONFIG = "model.safetensors", "config.json"
PROJECTION = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder of a model with a tied head, beside the shipped tokenizer."""
    folder = tmp_path_factory.mktemp("whole") / "model"
    config = helpers.small_config()
    config.tie_word_embeddings = True
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(helpers.SHIPPED).save_pretrained(folder)
    return folder


def weights(change):
    def damage(folder):
        save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})

    return damage


def config(**values):
    def damage(folder):
        content = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps(content | values))

    return damage


def content(name, text):
    return lambda folder: (folder / name).write_bytes(text)


def cut(name):
    def damage(folder):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) // 2])

    return damage


def pickled(damage):
    """Weights in the older format, then damaged."""

    def change(folder):
        torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
        (folder / WEIGHTS).unlink()
        damage(folder)

    return change


def sharded(folder):
    shards = dict.fromkeys(load_file(folder / WEIGHTS), "model-00001-of-00002.safetensors")
    shards[PROJECTION] = "model-00002-of-00002.safetensors"
    (folder / WEIGHTS).rename(folder / "model-00001-of-00002.safetensors")
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))


def without(part):
    return weights(lambda tensors: {key: t for key, t in tensors.items() if part not in key})


def stored(dtype):
    return weights(lambda tensors: {k: t.to(dtype) if "_proj" in k else t for k, t in tensors.items()})


def scaled(tensors):
    scales = {f"{key}_scale": torch.ones(1) for key in tensors if "_proj" in key}
    return scales | {k: t.to(torch.float8_e4m3fn) if "_proj" in k else t for k, t in tensors.items()}


MISSING = "would be random numbers"
DAMAGED = "is damaged or cut short; download it again"
CASES = {
    "a prefix": (weights(lambda t: {f"base.{k}": v for k, v in t.items()}), MISSING),
    "a missing layer": (without(".layers.1."), MISSING),
    "a missing weight": (without("layers.1.mlp.up"), f"its files hold no {PROJECTION}, which {MISSING}"),
    "no embedding": (without("embed"), f"hold no model.embed_tokens.weight, which {MISSING}"),
    "another architecture": (config(model_type="opt"), MISSING),
    "an architecture with Conv1D": (config(model_type="gpt2"), MISSING),
    "more layers": (config(num_hidden_layers=3), MISSING),
    "no architecture": (config(model_type=None), "cannot be loaded"),
    "swapped sizes": (weights(lambda t: t | {PROJECTION: t[PROJECTION].T.contiguous()}), PROJECTION),
    "a wider layer": (
        config(intermediate_size=160),
        "which should be 32 x 160; one of both is of another model",
    ),
    "heads that do not divide": (config(num_attention_heads=5), "cannot be"),
    "no heads": (config(num_attention_heads=0), "cannot be loaded: ZeroDivisionError"),
    "a size in words": (config(hidden_size="sixty"), "cannot be loaded"),
    "an unknown activation": (config(hidden_act="relo"), "cannot be loaded: KeyError: 'relo'"),
    "no JSON": (content(CONFIG, b"{"), "not a valid JSON file"),
    "a list": (content(CONFIG, b"[]"), "cannot be loaded"),
    "cut weights": (cut(WEIGHTS), f"{WEIGHTS} {DAMAGED}"),
    "empty weights": (content(WEIGHTS, b""), f"{WEIGHTS} {DAMAGED}"),
    "random bytes": (content(WEIGHTS, bytes(range(256)) * 9), f"{WEIGHTS} {DAMAGED}"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "no file named"),
    "a missing shard": (sharded, "download what is missing"),
    "a cut pickle": (pickled(cut("pytorch_model.bin")), f"pytorch_model.bin {DAMAGED}"),
    "no pickle": (pickled(content("pytorch_model.bin", b"\x80\x04zero" * 9)), f"pytorch_model.bin {DAMAGED}"),
    "GPTQ": (config(quantization_config={"quant_method": "gptq", "bits": 4}), "pip install"),
    "AQLM": (config(quantization_config={"quant_method": "aqlm"}), "pip install"),
    "codes without scales": (stored(torch.int8), None),
    "FP8 with scales": (weights(scaled), "stored as F8_E4M3"),
}


@pytest.mark.parametrize("case", CASES)
def test_no_model_comes_of_it(whole, tmp_path, case):
    folder = shutil.copytree(whole, tmp_path / "model")
    damage, text = CASES[case]
    damage(folder)
    with pytest.raises(InputError) as raised:
        load_model(str(folder), "fp32", trust_remote_code=False)
    assert "\n" not in str(raised.value)
    assert (text or "cannot be") in str(raised.value)


@pytest.mark.parametrize("case", ["a prefix", "cut weights", "a wider layer", "no heads"])
def test_the_command_ends_with_one_line_and_no_plan(project, tmp_path, case):
    folder = shutil.copytree(project / "model", tmp_path / "model")
    damage, text = CASES[case]
    damage(folder)
    name = f"model.name_or_path={folder}"
    result = helpers.call("tune", project / "recipe.yaml", name, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert helpers.told(result).count("Error: the ") == 1
    assert text in helpers.told(result)
    assert [path.name for path in (tmp_path / "out").glob("*.*")] == ["recipe.json"]


def test_a_tied_head_and_a_whole_model_say_nothing(whole, caplog):
    model = load_model(str(whole), "fp32", trust_remote_code=False)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert caplog.text == ""


WARNINGS = {
    "more weights": (weights(lambda t: t | {"model.old": torch.zeros(3)}), "has no place for: model.old"),
    "fewer layers": (config(num_hidden_layers=1), "has no place for: model.layers.1."),
    "FP8 without scales": (stored(torch.float8_e4m3fn), "its weights are FP8 already (model.layers.0."),
    "a method that nobody knows": (
        config(quantization_config={"quant_method": "mine"}),
        "quantized already (mine); losses are measured against the weights as they are stored",
    ),
}


@pytest.mark.parametrize("case", WARNINGS)
def test_what_is_passed_over_is_told(whole, tmp_path, case, caplog):
    folder = shutil.copytree(whole, tmp_path / "model")
    damage, text = WARNINGS[case]
    damage(folder)
    load_model(str(folder), "fp32", trust_remote_code=False)
    assert text in caplog.text


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b'{"model": 3}', b'{"version": "1.0"}'])
def test_a_damaged_tokenizer(whole, tmp_path, text):
    folder = shutil.copytree(whole, tmp_path / "model")
    (folder / "tokenizer.json").write_bytes(text)
    with pytest.raises(InputError, match="the tokenizer .* cannot be loaded"):
        load_tokenizer(str(folder), trust_remote_code=False)


def test_an_error_of_ours_is_none_of_loading(whole):
    with pytest.raises(InputError, match="model.config.layers is not a value"):
        load_config(str(whole), {"layers": 3}, trust_remote_code=False)
