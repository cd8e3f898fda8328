"""Where consumers run the ops of a model, and what goes together: against names written down by hand."""

import random
import re
from functools import cache

import capabilities
import helpers
import pytest
import transformers

import inc_mp_plugin as mp
from inc_mp_plugin.core.errors import InputError, SelectionError
from inc_mp_plugin.inc.config import config_of, measure_config
from inc_mp_plugin.inc.selection import selected
from inc_mp_plugin.targets import get_target
from inc_mp_plugin.targets.layout import Captured
from inc_mp_plugin.targets.rules import demands, legality

DENSE = ("llama", "qwen2", "qwen3", "mistral", "phi3")
EXPERTS = ("mixtral", "qwen3_moe")
SERVINGS = {
    "eager": mp.Serving(),
    "flash": mp.Serving(attention="flash"),
    "fp8 cache": mp.Serving(kv_cache="fp8"),
    "fp8 cache, flash": mp.Serving(kv_cache="fp8", attention="flash"),
    "reused cache": mp.Serving(reuse_cache=True),
    "reused fp8 cache": mp.Serving(kv_cache="fp8", reuse_cache=True),
}
FUSED = "fused_scaled_dot_product_attention"


@cache
def graph(name):
    model = qwen2() if name == "qwen2" else helpers.language_model(name)
    return mp.capture(model, {"input_ids": helpers.tokens(1)})


def qwen2():
    sizes = {"num_key_value_heads": 2, "num_attention_heads": 4, "num_hidden_layers": 2}
    config = transformers.Qwen2Config(hidden_size=64, intermediate_size=96, vocab_size=96, **sizes)
    return transformers.AutoModelForCausalLM.from_config(config)


def layer(names, number=0):
    """Names inside of one layer, without the common beginning."""
    start = f"model.layers.{number}."
    return {name.removeprefix(start) for name in names if name.startswith(start)}


def file_of(name, target, lowered, serving=None):
    captured, formats = graph(name), {}
    for op in captured.ops:
        formats[op.name] = "fp8_e4m3" if op.name in lowered else "bf16"
    return config_of("bf16", formats, get_target(target), Captured.of(captured), serving=serving)


def chosen(name, target, config, serving=None, version=0):
    layout = get_target(target).lay_out(Captured.of(graph(name)), serving or mp.Serving())
    return set(selected(layout.trees[version], config, "hpu"))


# What each consumer has in a layer when everything is in FP8 that may be, by hand.
ATTENTION = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"}
PRODUCTS = {"self_attn.matmul_qk", "self_attn.matmul_av"}
MLP = {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}
CACHES = {"self_attn.k_cache", "self_attn.v_cache"}
VLLM = {"self_attn.qkv_proj", "self_attn.o_proj", "self_attn.attn.impl.matmul_qk"}
VLLM |= {"self_attn.attn.impl.matmul_av"}
VLLM_CACHES = {"self_attn.attn.impl.k_cache", "self_attn.attn.impl.v_cache"}
EVERYTHING = [
    ("llama", "optimum-habana", "eager", ATTENTION | PRODUCTS | MLP),
    ("llama", "optimum-habana", "flash", ATTENTION | MLP | {f"self_attn.{FUSED}"}),
    ("llama", "optimum-habana", "fp8 cache", ATTENTION | PRODUCTS | MLP | CACHES),
    ("qwen3", "optimum-habana", "eager", ATTENTION - {"self_attn.k_proj"} | PRODUCTS | MLP),
    ("qwen3", "optimum-habana", "fp8 cache", ATTENTION | PRODUCTS | MLP | CACHES),
    ("mistral", "optimum-habana", "reused cache", ATTENTION | PRODUCTS | MLP),
    ("mistral", "optimum-habana", "reused fp8 cache", ATTENTION | PRODUCTS | MLP | CACHES),
    ("llama", "vllm-gaudi", "eager", VLLM | {"mlp.gate_up_proj", "mlp.down_proj"}),
    ("phi3", "vllm-gaudi", "eager", VLLM | {"mlp.gate_up_proj", "mlp.down_proj"}),
    ("qwen3", "vllm-gaudi", "fp8 cache", VLLM | VLLM_CACHES | {"mlp.gate_up_proj", "mlp.down_proj"}),
]


@pytest.mark.parametrize(("name", "target", "serving", "expected"), EVERYTHING)
def test_everything_that_may_be_in_fp8_by_hand(name, target, serving, expected):
    settings = SERVINGS[serving]
    demanded = demands(graph(name), [target], settings)
    runnable = {op.name for op in graph(name).ops} - demanded.kept.keys()
    config = file_of(name, target, runnable, settings)
    picked = chosen(name, target, config, settings)
    assert layer(picked) == layer(picked, 1) == expected
    assert {n for n in picked if "layers" not in n} == {"lm_head"}


SHARED = {"shared_expert.gate_up_proj", "shared_expert.down_proj"}
FAMILIES = [
    ("gpt_oss", "mlp", {"attn.qkv_proj", "attn.o_proj"}, set(), "router"),
    ("llama4_text", "feed_forward", VLLM, SHARED, "router"),
    ("qwen3_next", "mlp", VLLM, SHARED, "gate"),
    ("granitemoe", "block_sparse_moe", VLLM, set(), "gate"),
    ("olmoe", "mlp", VLLM, set(), "gate"),
]


@capabilities.fused_experts
@pytest.mark.parametrize(("name", "block", "attention", "beside", "router"), FAMILIES)
def test_experts_on_vllm_by_hand(name, block, attention, beside, router):
    """With biases (GPT-OSS) or without, all experts of a layer are one decision."""
    demanded = demands(graph(name), ["vllm-gaudi"])
    (tie,) = [set(tie.ops) for tie in demanded.ties if f"layers.1.{block}.experts" in tie.ops[0]]
    projections = ("gate_proj", "up_proj", "down_proj")
    assert tie == {f"model.layers.1.{block}.experts.{e}.{p}" for e in range(4) for p in projections}
    config = file_of(name, "vllm-gaudi", {op.name for op in graph(name).ops} - demanded.kept.keys())
    inside = {f"moe_op.{part}.{e}" for part in ("w13_list", "w2_list") for e in range(4)} | {"moe_op"}
    for version, path in enumerate(("experts", "experts.routed_experts")):
        expected = {f"{block}.{path}.{name}" for name in inside} | {f"{block}.{name}" for name in beside}
        expected |= attention | ({f"{block}.experts"} if not version else set())
        assert layer(chosen(name, "vllm-gaudi", config, version=version), 1) == expected
    layout = get_target("vllm-gaudi").lay_out(Captured.of(graph(name)), mp.Serving())
    assert layer(layout.routers, 1) == {f"{block}.{router}"}
    assert all(set(layout.routers) <= tree.keys() for tree in layout.trees)


@pytest.mark.parametrize(
    ("name", "target", "serving", "expected"),
    [
        ("llama", "optimum-habana", "eager", set()),
        ("llama", "optimum-habana", "flash", {("self_attn.matmul_av", "self_attn.matmul_qk")}),
        (
            "llama",
            "vllm-gaudi",
            "eager",
            {
                ("self_attn.k_proj", "self_attn.q_proj", "self_attn.v_proj"),
                ("mlp.gate_proj", "mlp.up_proj"),
            },
        ),
        ("phi3", "vllm-gaudi", "eager", set()),
    ],
)
def test_ties_by_hand(name, target, serving, expected):
    ties = demands(graph(name), [target], SERVINGS[serving]).ties
    inside = {tuple(sorted(layer(tie.ops))) for tie in ties} - {()}
    assert inside == expected
    assert len(ties) == 2 * len(expected)
    assert all(tie.why.startswith(f"{target}: ") for tie in ties)


def test_ties_of_several_targets_unite():
    both = demands(graph("llama"), ["optimum-habana", "vllm-gaudi"], SERVINGS["flash"]).ties
    assert len(both) == 2 * 3


def test_fixed_ops():
    kept = demands(graph("qwen3"), ["optimum-habana"]).kept
    assert set(kept) == {f"model.layers.{i}.self_attn.k_proj" for i in (0, 1)}
    lowered = demands(graph("llama"), ["optimum-habana"], SERVINGS["fp8 cache"]).lowered
    assert set(lowered) == {f"model.layers.{i}.self_attn.k_proj" for i in (0, 1)}
    assert not demands(graph("llama"), ["vllm-gaudi"], SERVINGS["fp8 cache"]).lowered
    assert not demands(graph("qwen3"), ["optimum-habana"], SERVINGS["reused fp8 cache"]).lowered


@pytest.mark.parametrize("name", ["opt", "gpt_neox", "falcon"])
def test_names_that_vllm_is_not_known_to_have_stay(name):
    kept = demands(graph(name), ["vllm-gaudi"]).kept
    assert kept
    assert all("is not known here" in why or "shares the embedding" in why for why in kept.values())


@pytest.mark.parametrize(("name", "kept"), [("llama", False), ("qwen3", True)])
def test_a_tied_head_on_vllm(name, kept):
    """It stays a module of its own, except in Qwen2 and Qwen3, where it is the embedding itself."""
    model = helpers.language_model(name, tie_word_embeddings=True)
    tied = mp.capture(model, {"input_ids": helpers.tokens(1)})
    assert ("lm_head" in demands(tied, ["vllm-gaudi"]).kept) == kept


def random_plan(name, targets, serving, generator):
    """Ops in FP8: each tie as a whole or not at all, what is fixed as it is fixed."""
    captured = graph(name)
    demanded = demands(captured, targets, serving)
    lowered = set(demanded.lowered)
    tied = {op for tie in demanded.ties for op in tie.ops}
    units = [tie.ops for tie in demanded.ties]
    units += [(op.name,) for op in captured.ops if op.name not in tied | lowered | demanded.kept.keys()]
    share = generator.random()
    for unit in units:
        if generator.random() < share:
            lowered.update(unit)
    return lowered


def by_hand(name, target, lowered, serving):
    """Modules of a consumer for these ops, by rules of thumb written down once more."""
    modules = set()
    flash = serving.attention == "flash" or name == "mixtral"
    for op in lowered:
        if name == "mixtral" and ".experts." in op:
            op = op.replace(".mlp.", ".block_sparse_moe.")
        if ".experts." in op and target == "vllm-gaudi":
            block, expert, role = re.fullmatch(r"(.*)\.experts\.(\d+)\.(\w+)_proj", op).groups()
            part = "w2_list" if role == "down" else "w13_list"
            modules |= {f"{block}.experts", f"{block}.experts.moe_op"}
            op = f"{block}.experts.moe_op.{part}.{expert}"
        elif ".experts." in op:
            modules.add(op.split(".experts.")[0])
            for role, short in (("gate", "w1"), ("up", "w3"), ("down", "w2")):
                op = op.replace(f"{role}_proj", short)
        elif target == "vllm-gaudi":
            op = re.sub(r"self_attn\.[qkv]_proj$", "self_attn.qkv_proj", op)
            op = re.sub(r"mlp\.(gate|up)_proj$", "mlp.gate_up_proj", op)
            op = op.replace("self_attn.matmul", "self_attn.attn.impl.matmul")
        elif flash:
            op = re.sub(r"matmul_(qk|av)$", FUSED, op)
        modules.add(op)
    if serving.kv_cache == "fp8":
        impl = "self_attn.attn.impl" if target == "vllm-gaudi" else "self_attn"
        modules |= {f"model.layers.{i}.{impl}.{c}_cache" for i in (0, 1) for c in "kv"}
    return modules


@pytest.mark.parametrize("target", ["optimum-habana", "vllm-gaudi"])
@pytest.mark.parametrize("name", helpers.mostly_slow([*DENSE, *EXPERTS], "llama"))
def test_inc_selects_the_plan_of_200_random_ones(name, target):
    generator = random.Random(f"{name} {target}")
    for _ in range(200):
        serving = generator.choice(list(SERVINGS.values()))
        layout = get_target(target).lay_out(Captured.of(graph(name)), serving)
        lowered = random_plan(name, [target], serving, generator)
        config, expected = file_of(name, target, lowered, serving), by_hand(name, target, lowered, serving)
        picked = chosen(name, target, config, serving)
        assert picked == expected
        if len(layout.trees) > 1:  # newer versions of vLLM hold the experts one level deeper
            deeper = {n.replace(".experts.", ".experts.routed_experts.") for n in expected}
            newer = chosen(name, target, config, serving, version=1)
            assert newer == {n for n in deeper if not n.endswith(".experts")}
            picked |= newer
        assert not legality(layout, picked)


ILLEGAL = [
    ("llama", "vllm-gaudi", "eager", ["self_attn.q_proj"], "stays in the base format, .* it is one qkv_proj"),
    ("llama", "vllm-gaudi", "eager", ["mlp.up_proj"], "it is one gate_up_proj"),
    ("llama", "optimum-habana", "flash", ["self_attn.matmul_qk"], f"it is one {FUSED}"),
    ("llama", "optimum-habana", "fp8 cache", [], "an FP8 cache takes FP8 keys only"),
    ("qwen3", "optimum-habana", "fp8 cache", [], "its cache in the format of the key projection"),
    ("qwen3", "optimum-habana", "eager", ["self_attn.k_proj"], "the key projection"),
]


@pytest.mark.parametrize(("name", "target", "serving", "ops", "why"), ILLEGAL)
def test_illegal_mixes_are_refused(name, target, serving, ops, why):
    lowered = {f"model.layers.0.{op}" for op in ops}
    with pytest.raises(SelectionError, match=f"no {target} file was made.*{why}"):
        file_of(name, target, lowered, SERVINGS[serving])


def test_what_must_be_in_two_formats_at_once():
    with pytest.raises(InputError, match=r"must run in FP8 .* and must not"):
        captured = graph("qwen3")
        layout = get_target("optimum-habana").lay_out(Captured.of(captured), SERVINGS["fp8 cache"])
        key = "model.layers.0.self_attn.k_proj"
        broken = type(layout)(**{**vars(layout), "kept": {key: "somebody says so"}})
        from inc_mp_plugin.targets.rules import demands_of

        demands_of({"optimum-habana": broken}, Captured.of(captured), SERVINGS["fp8 cache"])


def test_nothing_lowered_is_a_file_that_selects_nothing():
    config = file_of("llama", "vllm-gaudi", set())
    assert config["blocklist"]["names"] == [".*"]
    assert not chosen("llama", "vllm-gaudi", config)


def test_measuring_takes_everything_once_for_all_plans():
    config = file_of("llama", "optimum-habana", {"lm_head"})
    measure = measure_config(config, get_target("optimum-habana"))
    assert (measure["mode"], config["mode"]) == ("MEASURE", "QUANTIZE")
    assert measure["dump_stats_path"] == config["dump_stats_path"]
    assert len(chosen("llama", "optimum-habana", measure)) > len(chosen("llama", "optimum-habana", config))


def test_measurements_of_another_attention_lie_elsewhere():
    paths = {
        file_of("llama", target, {"lm_head"}, serving)["dump_stats_path"]
        for target in ("optimum-habana", "vllm-gaudi")
        for serving in (SERVINGS["eager"], SERVINGS["flash"])
    }
    assert len(paths) == 3


@pytest.mark.parametrize("key", ["kv_cache", "attention"])
def test_servings_that_there_are_not(key):
    with pytest.raises(InputError, match=f"unknown {key} 'fp9'"):
        mp.Serving(**{key: "fp9"})
