"""Diagnosing files that people write by hand, with INC's own selection as the judge."""

import json
from functools import cache
from pathlib import Path

import helpers
import pytest
import transformers

import inc_mp_plugin as mp
from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.inc.check.file import KnownServing, check_file
from inc_mp_plugin.inc.check.measurements import load_captured
from inc_mp_plugin.targets.layout import Captured

HANDWRITTEN = Path(__file__).parent / "handwritten"


@cache
def captured(name, layers=2):
    model = helpers.language_model(name, num_hidden_layers=layers)
    return Captured.of(mp.capture(model, {"input_ids": helpers.tokens(1)}))


def check(path, name, target, layers=2, **options):
    serving = KnownServing(**options.pop("served", {}))
    given = {"measurements": None, "device": None, **options}
    return check_file(path, captured(name, layers), target, serving, **given)


def written(tmp_path, **content):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"mode": "QUANTIZE", **content}))
    return path


def names(*patterns, types=()):
    return {"types": list(types), "names": list(patterns)}


# file, model, layers, and what must be said; None where the file does what its author meant.
LISTS = [
    ("optimum-habana-gemma-first", "gemma3", 2, None),
    ("optimum-habana-gemma-second", "gemma3", 2, None),
    ("optimum-habana-gemma-first", "phi3", 2, None),
    ("optimum-habana-mixtral-attention", "mixtral", 2, None),
    ("optimum-habana-any-old-keys", "llama", 2, None),
    ("vllm-gaudi-mixtral-attention", "mixtral", 2, None),
    ("vllm-gaudi-any-cache-by-name", "llama", 2, None),
    ("vllm-gaudi-any-cache-by-type", "llama", 2, None),
    ("optimum-habana-mixtral-bad-range", "mixtral", 2, "bad character range 9-3"),
    ("optimum-habana-llama-layer-one", "llama", 12, "also matches model.layers.10.self_attn.q_proj"),
    ("optimum-habana-mixtral-half-experts", "mixtral", 2, "one kernel runs all experts of a block"),
    ("vllm-gaudi-mixtral-half-experts", "mixtral", 2, "one kernel runs all experts of a block"),
    ("vllm-gaudi-llama-gate", "llama", 2, "so it matches model.layers.0.mlp.gate_up_proj"),
    ("vllm-gaudi-llama-unfused", "llama", 2, "matches no module of the model"),
    ("vllm-gaudi-llama-unfused-allowed", "llama", 2, "the model would run without FP8"),
]


@pytest.mark.parametrize(("file", "name", "layers", "fault"), LISTS)
def test_lists_that_people_write(file, name, layers, fault):
    target = "vllm-gaudi" if file.startswith("vllm") else "optimum-habana"
    path = HANDWRITTEN / f"{file}.json"
    if "range" in file:
        with pytest.raises(InputError, match=fault):
            check(path, name, target, layers)
        return
    faults = check(path, name, target, layers).faults
    if fault is None:
        assert faults == ()
    else:
        assert any(fault in line for line in faults), faults


def test_what_is_left_in_the_base_format_by_hand():
    """Of a Gemma: two products in each of two layers, and the head."""
    lines = check(HANDWRITTEN / "optimum-habana-gemma-first.json", "gemma3", "optimum-habana").lines
    assert "and leave in the base format: 1 Linear, 4 Matmul" in lines
    assert f"{2 * 7:7d} Linear" in lines


FAULTS = {
    "everything": ({"blocklist": names("nothing")}, "the lists change nothing: everything"),
    "cancelled names": (
        {"allowlist": names("^lm_head$"), "blocklist": names("lm")},
        "'^lm_head$' is cancelled by the block list",
    ),
    "cancelled types": (
        {"allowlist": names(types=["Matmul"]), "blocklist": names(types=["Matmul"])},
        "'Matmul' is cancelled",
    ),
    "types or names": (
        {"allowlist": names("^lm_head$", types=["Linear"])},
        "every Linear is in, whatever its name",
    ),
    "lower case": ({"mode": "quantize"}, "silently does nothing"),
    "no folder": ({"dump_stats_path": "stats"}, "INC fails unless it has a folder"),
    "misspelt": ({"scale_metod": "maxabs_hw"}, "did you mean 'scale_method'?"),
    "no mode": ({"mode": None}, "mode is missing: INC then takes AUTO"),
    "unknown mode": ({"mode": "QUANTISE"}, "did you mean 'QUANTIZE'?"),
    "unknown scale method": ({"scale_method": "maxabs_hv"}, "did you mean 'maxabs_hw'?"),
    "flat strategy": ({"strategy": "ip_mse"}, 'Write the nested form, at which INC then stops: "ip_mse"'),
    "a value INC refuses": ({"fp8_config": "E5M3"}, "unknown fp8_config 'E5M3'"),
    "no yes or no": ({"use_qdq": "maybe"}, "unknown use_qdq 'maybe'; known: "),
    "old and new key": ({"blacklist": names("x"), "blocklist": names("y")}, "only the later one counts"),
    "a set of digits": ({"blocklist": names("layers.[0-15].mlp")}, "a set of digits, not a range"),
    "a blocked class": ({"blocklist": names(types=["Matmull"])}, "'Matmull' is the class of no module"),
    "a vLLM name": (
        {"blocklist": names("qkv_proj")},
        "'qkv_proj' is a name of vllm-gaudi's; optimum-habana runs that op in model.layers.",
    ),
    "unknown class": ({"allowlist": names("lm_head", types=["Lineal"])}, "'Lineal' is the class of no"),
}


@pytest.mark.parametrize(("content", "fault"), FAULTS.values(), ids=FAULTS.keys())
def test_faults(tmp_path, content, fault):
    faults = check(written(tmp_path, **content), "llama", "optimum-habana").faults
    assert any(fault in line for line in faults), faults


def test_a_file_that_measures_is_not_held_to_rules(tmp_path):
    path = written(tmp_path, mode="MEASURE", blocklist=names("k_proj"))
    report = check(path, "llama", "optimum-habana", served={"kv_cache": "bf16", "attention": "eager"})
    assert report.faults == ()
    assert report.lines[0].startswith("INC would measure 23 of 25 modules")


@pytest.mark.parametrize("target", ["vllm-gaudi", "optimum-habana"])
def test_the_cache_that_is_served(tmp_path, target):
    everything = written(tmp_path)
    lines = check(everything, "llama", target).lines
    assert any("note: 4 modules hold the KV cache" in line for line in lines)
    faults = check(everything, "llama", target, served={"kv_cache": "bf16"}).faults
    assert len(faults) == 2
    for fault, name in zip(faults, ("k_cache", "v_cache"), strict=True):
        assert f"{name} would run in FP8, but kv_cache is bf16" in fault
        assert fault.endswith("(and 1 more like it)")
    assert check(everything, "llama", target, served={"kv_cache": "fp8"}).faults == ()
    without = written(tmp_path, blocklist=names("[kv]_cache$"))
    assert check(without, "llama", target, served={"kv_cache": "bf16"}).faults == ()
    faults = check(without, "llama", target, served={"kv_cache": "fp8"}).faults
    assert all("_cache would not run in FP8, but kv_cache is fp8" in fault for fault in faults)
    assert faults


FUSED = "fused_scaled_dot_product_attention"
RESTING = {
    "allowed products": ("allowlist", r"matmul_qk$", "flash", "in the base format"),
    "allowed kernel": ("allowlist", f"{FUSED}$", "eager", "in the base format"),
    "blocked products": ("blocklist", r"\.matmul_(?:qk|av)$", "flash", "in FP8"),
    "blocked kernel": ("blocklist", f"{FUSED}$", "eager", "in FP8"),
}


@pytest.mark.parametrize(("part", "pattern", "attention", "runs"), RESTING.values(), ids=RESTING.keys())
def test_modules_that_the_attention_never_runs(tmp_path, part, pattern, attention, runs):
    path = written(tmp_path, **{part: names(pattern)})
    (fault,) = check(path, "llama", "optimum-habana", served={"attention": attention}).faults
    assert "matches only modules that never run with this attention" in fault
    assert fault.endswith(f"runs instead, {runs}")
    other = {"eager": "flash", "flash": "eager"}[attention]
    for unsuspicious in ({"attention": other}, {}):
        assert check(path, "llama", "optimum-habana", served=unsuspicious).faults == ()


@pytest.mark.parametrize(("attention", "faults"), [("eager", 0), ("flash", 2)])
def test_gemmas_list_is_for_eager_attention(attention, faults):
    """It blocks the two products, which flash attention runs in its kernel, and there in FP8."""
    path = HANDWRITTEN / "optimum-habana-gemma-first.json"
    assert len(check(path, "llama", "optimum-habana", served={"attention": attention}).faults) == faults


def test_names_of_another_consumer_without_a_target(tmp_path):
    path = written(tmp_path, blocklist=names("qkv_proj"))
    assert any("check with --target vllm-gaudi" in fault for fault in check(path, "llama", None).faults)


def test_routers_in_fp8_are_named(tmp_path):
    lines = check(written(tmp_path), "mixtral", "vllm-gaudi").lines
    assert any(
        "note: 2 routers would run in FP8 (model.layers.{0-1}.block_sparse_moe.gate)" in n for n in lines
    )
    without = written(tmp_path, blocklist=names(r"\.gate$"))
    assert not any("router" in line for line in check(without, "mixtral", "vllm-gaudi").lines)


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_a_measurement_without_a_usable_value(tmp_path, value):
    node = {"inputs": [[[3.0]]], "params": {"weight": [[0.5]]}}
    nodes = {"lm_head": node, "model.layers.0.mlp.up_proj": {**node, "inputs": [[[value]]]}}
    measured = tmp_path / "measure_hooks_maxabs.json"
    measured.write_text(json.dumps({"Nodes": nodes}))
    both = written(tmp_path, allowlist=names("^lm_head$", r"0\.mlp\.up_proj$"))
    (fault,) = check(both, "llama", "optimum-habana", measurements=measured).faults
    assert "1 modules are selected whose largest value" in fault
    assert "model.layers.0.mlp.up_proj" in fault


def test_empty_lists_are_everything_on_purpose(tmp_path):
    report = check(written(tmp_path), "llama", "optimum-habana")
    assert report.faults == ()
    assert report.lines[0].startswith("INC would quantize 25 of 25 modules")


def test_a_mix_that_the_consumer_cannot_run(tmp_path):
    path = written(tmp_path, blocklist=names("k_proj"))
    assert any("FP8 keys only" in f for f in check(path, "llama", "optimum-habana").faults)
    assert check(path, "llama", "optimum-habana", served={"reuse_cache": True}).faults == ()
    assert any("format of the key" in f for f in check(path, "qwen3", "optimum-habana").faults)


def test_a_cache_of_vllm_is_all_or_nothing(tmp_path):
    path = written(tmp_path, blocklist=names(r"^model\.layers\.0\.self_attn\.attn\.impl\.[kv]_cache$"))
    faults = check(path, "llama", "vllm-gaudi").faults
    assert any("one --kv-cache-dtype holds for all layers" in fault for fault in faults)


def test_without_a_target_the_names_are_those_of_the_model(tmp_path):
    path = written(tmp_path, blocklist=names("q_proj"))
    assert check(path, "llama", None).faults == ()
    assert any("no module" in f for f in check(path, "llama", "vllm-gaudi").faults)


def test_both_versions_of_names_are_shown(tmp_path):
    lines = check(written(tmp_path), "mixtral", "vllm-gaudi").lines
    assert sum("(names, version" in line for line in lines) == 2


def test_measurements_of_another_attention(tmp_path):
    flash = written(tmp_path, allowlist=names(r"\.fused_scaled_dot_product_attention$"))
    nodes = {f"model.layers.{i}.self_attn.matmul_{p}": {} for i in (0, 1) for p in ("qk", "av")}
    measured = tmp_path / "measure_hooks_maxabs.json"
    measured.write_text(json.dumps({"Mode": "DynamicRange", "Nodes": nodes}))
    (fault,) = check(flash, "llama", "optimum-habana", measurements=measured).faults
    assert "2 modules are selected but not in measure_hooks_maxabs.json" in fault
    eager = written(tmp_path, allowlist=names(r"\.matmul_(?:qk|av)$"))
    assert check(eager, "llama", "optimum-habana", measurements=measured).faults == ()
    measured.write_text("{}")
    with pytest.raises(InputError, match="holds no measurements of INC's"):
        check(eager, "llama", "optimum-habana", measurements=measured)


def test_a_target_has_its_own_device(tmp_path):
    with pytest.raises(InputError, match="target cpu-qdq runs on cpu, not on hpu"):
        check(written(tmp_path), "llama", "cpu-qdq", device="hpu")
    with pytest.raises(InputError, match="unknown device 'tpu'"):
        check(written(tmp_path), "llama", None, device="tpu")


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_by_name_is_what_its_graph_says(tmp_path, tied):
    config = helpers.CONFIGS["qwen3_moe"]()
    config.tie_word_embeddings = tied
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    by_name = load_captured(None, str(tmp_path))
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    graph = mp.capture(model, {"input_ids": helpers.tokens(1)})
    assert dict(by_name.modules) == dict(graph.modules)
    assert sorted(by_name.ops) == sorted(op.name for op in graph.ops)
    assert by_name.tied == Captured.of(graph).tied


@pytest.mark.parametrize(
    ("target", "kind", "other", "own"),
    [
        ("vllm-gaudi", "KVCache", "optimum-habana", "VLLMKVCache"),
        ("optimum-habana", "VLLMKVCache", "vllm-gaudi", "KVCache"),
        ("optimum-habana", "RowParallelLinear", "vllm-gaudi", "Linear"),
    ],
)
@pytest.mark.parametrize("part", ["allowlist", "blocklist"])
def test_classes_of_another_consumer(tmp_path, target, kind, other, own, part):
    """Every class is in INC's table, so the table alone does not show that the entry does nothing."""
    path = written(tmp_path, **{part: names(types=(kind,))})
    fault = f"{part}.types: '{kind}' is a class of {other}'s and names nothing of {target}, which has {own} "
    assert any(fault in line for line in check(path, "llama", target).faults)
    without = check(path, "llama", None).faults
    assert any(f"{kind!r} is a class of {other}'s: check with --target {other}" in line for line in without)
    mine = check(written(tmp_path, **{part: names(types=(own,))}), "llama", target).faults
    assert not any("is a class of" in line for line in mine)
