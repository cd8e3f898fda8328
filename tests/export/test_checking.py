"""`inc-mp check MODEL`: every way in which a checkpoint would fail in vLLM, or babble, made by hand."""

import json
import shutil

import checkpoints
import helpers
import pytest
import torch
from helpers import call, told
from safetensors.torch import load_file, save_file

from inc_mp_plugin.export.checkpoint import INDEX, Stored
from inc_mp_plugin.export.folder import CHECKSUMS
from inc_mp_plugin.export.rules import Facts, faults_of
from inc_mp_plugin.export.schemes import Settings
from inc_mp_plugin.export.settings import quantization_config

LAYER = "model.layers.0"
FILE = "model.safetensors"


def made(name, lowered):
    def make(folder):
        model = helpers.mixture(name)
        source = checkpoints.saved(model, folder / "source")
        captured = checkpoints.captured_linear(model)
        ops = [op for op in captured.ops if lowered(op)]
        checkpoints.exported(model, source, ops, folder / "out", captured=captured)
        (folder / "out" / CHECKSUMS).unlink()  # what is broken below is not a copy gone wrong

    return make


@pytest.fixture(scope="module")
def llama(made_once):
    """Of layer 0 attention is in FP8, of layer 1 all, and the head."""
    return made_once("llama checked", made("llama", lambda op: ".mlp" not in op or ".1." in op)) / "out"


@pytest.fixture(scope="module")
def mixtral(made_once):
    """The experts of layer 0 are in FP8."""
    if helpers.OLD_TRANSFORMERS:
        pytest.skip("experts have other names")
    return made_once("mixtral checked", made("mixtral", lambda op: ".0.mlp.experts." in op)) / "out"


@pytest.fixture
def broken(tmp_path):
    """Return a function (folder, change of config, change of tensors) -> a copy with these changes."""

    def copy(folder, settings=None, weights=None):
        out = shutil.copytree(folder, tmp_path / "out")
        config = checkpoints.config(out)
        if settings is not None:
            settings(config["quantization_config"])
            (out / "config.json").write_text(json.dumps(config))
        if weights is not None:
            tensors = load_file(out / FILE)
            weights(tensors)
            save_file(tensors, out / FILE)
            (out / INDEX).unlink()
        return out

    return copy


def ignoring(*entries, without=()):
    """Change `ignore`: entries to add, and those to take away."""

    def change(config):
        config["ignore"] = [name for name in config["ignore"] if name not in without] + list(entries)

    return change


def static(config):
    config["config_groups"]["group_0"]["input_activations"] |= {"dynamic": False, "strategy": "tensor"}


def without_heads(config):
    config["config_groups"]["group_0"]["targets"] = ["Linear"]


def no_targets(config):
    config["config_groups"]["group_0"]["targets"] = ["lm_head"]


def dropped(name):
    return lambda tensors: tensors.pop(f"{LAYER}.{name}")


def in_base(*names):
    """Weights as numbers again."""

    def change(tensors):
        for name in names:
            tensors[f"{LAYER}.{name}.weight"] = tensors[f"{LAYER}.{name}.weight"].float()
            del tensors[f"{LAYER}.{name}.weight_scale"]

    return change


def added(name, shape=(1,)):
    return lambda tensors: tensors.update({f"{LAYER}.{name}": torch.ones(shape)})


MLP = [f"{LAYER}.mlp.{name}_proj" for name in ("gate", "up", "down")]
ON_LLAMA = {
    "scale dropped": (None, dropped("self_attn.o_proj.weight_scale"), "without a weight_scale: " + LAYER),
    "scale too many": (None, added("mlp.down_proj.weight_scale"), "scales without a quantized weight"),
    "scale of nothing": (None, added("self_attn.r_proj.weight_scale"), "scales without a quantized weight"),
    "cache's scale": (None, added("self_attn.k_scale"), "no use for: model.layers.0.self_attn.k_scale"),
    "input's scale": (None, added("self_attn.o_proj.input_scale"), "scales that config.json has no use for"),
    "scale's shape": (None, added("self_attn.o_proj.weight_scale"), "of another shape than the strategy"),
    "static without scales": (static, None, "no input_scale, though config.json says"),
    "group in part": (
        ignoring(f"{LAYER}.self_attn.q_proj"),
        in_base("self_attn.q_proj"),
        f"{LAYER}.self_attn.qkv_proj: 2 of its 3 parts are in FP8",
    ),
    "ignore in part": (
        ignoring(without=[f"{LAYER}.mlp.up_proj"]),
        None,
        f"{LAYER}.mlp.gate_up_proj: {LAYER}.mlp.gate_proj is in ignore, and {LAYER}.mlp.up_proj is not",
    ),
    "quantized and ignored": (ignoring(f"{LAYER}.self_attn.o_proj"), None, "in ignore, but stored as codes"),
    "neither": (ignoring(without=[f"{LAYER}.mlp.down_proj"]), None, "neither in ignore nor quantized"),
    "no such module": (ignoring("model.layers.7.mlp.down_proj"), None, "matches no module"),
    "a part of a name": (
        ignoring("mlp.down_proj"),
        None,
        f"is the whole name, such as {LAYER}.mlp.down_proj",
    ),
    "a pattern without re:": (ignoring(".*down_proj"), None, "patterns begin with 're:'"),
    "a pattern from the middle": (ignoring("re:mlp"), None, "is matched from the start of a name"),
    "no pattern": (ignoring("re:("), None, "is no regular expression"),
    "no end": (ignoring(r"re:.*layers\.0\.mlp\.gate"), None, "write 're:.*layers\\.0\\.mlp\\.gate$'"),
    "head without a target": (without_heads, None, "name it in targets"),
    "no target": (no_targets, None, "no target of config_groups is theirs"),
}


@pytest.mark.parametrize("case", ON_LLAMA)
def test_faults_of_settings_and_tensors(llama, broken, case):
    settings, weights, message = ON_LLAMA[case]
    result = call("check", broken(llama, settings, weights))
    assert result.exit_code == 2, result.output
    assert message in told(result)
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (ignoring("model.layers.0.block_sparse_moe.experts.0.w1"), "stored as codes"),
        (
            ignoring(without=["model.layers.1.block_sparse_moe.experts.2.w3"]),
            "vLLM looks at expert 0 alone",
        ),
    ],
)
def test_faults_of_experts(mixtral, broken, settings, message):
    result = call("check", broken(mixtral, settings))
    assert result.exit_code == 2
    assert message in told(result)


def test_an_expert_beyond_the_first_in_base_is_noticed(mixtral, broken):
    """VLLM would load it without complaint."""
    name = "block_sparse_moe.experts.3.w2"
    result = call("check", broken(mixtral, ignoring(f"{LAYER}.{name}"), in_base(name)))
    assert result.exit_code == 2
    assert "11 of its 12 parts are in FP8" in told(result)


@pytest.mark.parametrize(
    "settings",
    [
        None,
        ignoring(
            f"{LAYER}.mlp.gate_up_proj", without=[f"{LAYER}.mlp.{name}_proj" for name in ("gate", "up")]
        ),
        ignoring(
            r"re:.*layers\.0\.mlp\..*", without=[f"{LAYER}.mlp.{n}_proj" for n in ("gate", "up", "down")]
        ),
        ignoring(r"re:.*\.0\.mlp\.down_proj", without=[f"{LAYER}.mlp.down_proj"]),
    ],
    ids=["as written", "fused name", "open pattern", "pattern of one name"],
)
def test_what_vllm_loads_is_not_suspicious(llama, broken, settings):
    result = call("check", broken(llama, settings))
    assert result.exit_code == 0, result.output
    assert "12 quantized modules" in result.output
    assert "Nothing about the checkpoint is suspicious." in result.output


def test_a_mixture_is_not_suspicious(mixtral):
    assert call("check", mixtral).exit_code == 0


def cut(folder):
    (folder / FILE).write_bytes((folder / FILE).read_bytes()[:-1])


def unnamed(folder):
    index = json.loads((folder / INDEX).read_text())
    del index["weight_map"][f"{LAYER}.self_attn.o_proj.weight"]
    (folder / INDEX).write_text(json.dumps(index))


def named(folder):
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"][f"{LAYER}.self_attn.o_proj.bias"] = FILE
    (folder / INDEX).write_text(json.dumps(index))


def missing(folder):
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"][f"{LAYER}.self_attn.o_proj.weight"] = "model-2.safetensors"
    (folder / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (cut, f"{FILE} is truncated or damaged"),
        (unnamed, f"does not name tensors of its files: {LAYER}.self_attn.o_proj.weight"),
        (named, f"names tensors that its files do not hold: {LAYER}.self_attn.o_proj.bias"),
        (missing, "model-2.safetensors cannot be read: No such file"),
        (lambda folder: (folder / INDEX).write_text("{"), f"{INDEX} is damaged"),
        (lambda folder: (folder / "config.json").unlink(), "config.json cannot be read"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is no JSON"),
        (lambda folder: (folder / "config.json").write_text("{}"), "has no quantization_config"),
    ],
    ids=["truncated", "unnamed", "named", "missing", "index", "no config", "no JSON", "not quantized"],
)
def test_faults_of_files(llama, broken, change, message):
    folder = broken(llama)
    change(folder)
    result = call("check", folder)
    assert result.exit_code == 2, result.output
    assert message in told(result)


def test_a_changed_file_is_noticed_by_its_sum(tmp_path):
    model = helpers.language_model("llama")
    source = checkpoints.saved(model, tmp_path / "source")
    captured = checkpoints.captured_linear(model)
    out = tmp_path / "out"
    checkpoints.exported(model, source, captured.ops, out, captured=captured)
    assert call("check", out).exit_code == 0
    content = bytearray((out / FILE).read_bytes())
    content[-1] ^= 1
    (out / FILE).write_bytes(content)
    (out / "generation_config.json").unlink()
    result = call("check", out)
    assert result.exit_code == 2
    assert f"not what was written, by {CHECKSUMS}: {FILE}" in told(result)
    assert "names files that are missing: generation_config.json" in told(result)


def test_other_kinds_and_options_are_refused(llama, broken):
    folder = broken(llama, lambda config: config.update(quant_method="fp8"))
    assert "only compressed-tensors is checked" in told(call("check", folder))
    result = call("check", llama, "--target", "vllm-gaudi")
    assert result.exit_code == 2
    assert "without options" in told(result)


@pytest.mark.parametrize("lowered", [True, False])
def test_a_stack_of_experts_is_each_of_them(lowered):
    """Three experts in FP8 beside their scales, or in BF16 and in `ignore`, name by name."""
    path = "model.layers.0.mlp.experts"
    dtype = "F8_E4M3" if lowered else "BF16"
    tensors = {
        f"{path}.gate_up_proj": Stored(FILE, dtype, (3, 8, 4)),
        f"{path}.down_proj": Stored(FILE, dtype, (3, 4, 4)),
    }
    if lowered:
        tensors |= {f"{name}.weight_scale": Stored(FILE, "F32", (3, 8, 1)) for name in list(tensors)}
    experts = {f"{path}.{i}.{role}_proj" for i in range(3) for role in ("gate", "up", "down")}
    config = {"quantization_config": quantization_config("dynamic", [], () if lowered else experts)}
    facts = Facts(tensors, Settings.of(config, "here"))
    assert set(facts.linear) == experts
    assert facts.quantized == (experts if lowered else set())
    assert faults_of(facts) == []


def test_a_path_that_is_not_there(tmp_path):
    result = call("check", tmp_path / "nowhere")
    assert result.exit_code == 2
    assert "nowhere does not exist; give a file of INC's, or the folder of a checkpoint" in told(result)
