"""Files for INC: patterns, INC's own selection, and what is refused."""

import itertools
import re
from dataclasses import MISSING, fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inc_mp_plugin.core.errors import InputError, SelectionError
from inc_mp_plugin.core.plan import Plan
from inc_mp_plugin.inc.config import config_of, to_inc_config
from inc_mp_plugin.inc.patterns import compress
from inc_mp_plugin.inc.selection import selected
from inc_mp_plugin.targets import get_target
from inc_mp_plugin.targets.layout import Captured

OPS = {
    f"model.layers.{layer}.{op}": kind
    for layer in range(12)
    for op, kind in {
        "self_attn.q_proj": "Linear",
        "self_attn.matmul_qk": "Matmul",
        "mlp.up_proj": "Linear",
    }.items()
} | {"lm_head": "Linear"}
MODULES = {**OPS, "model": "LlamaModel", "model.norm": "LlamaRMSNorm", "never_run": "Linear"}


def plan_of(quantized, lower="fp8_e4m3", base="bf16"):
    formats = {name: lower if name in quantized else base for name in OPS}
    names = {field.name for field in fields(Plan) if field.default is MISSING}
    return Plan(**{**dict.fromkeys(names, 0.0), "base": base, "formats": formats})


def config_for(plan, target, modules=None):
    captured = Captured(tuple(plan.formats), modules or MODULES)
    return config_of(plan.base, plan.formats, get_target(target), captured)


names = st.lists(
    st.from_regex(r"\A(layers\.\d{1,3}\.)?[a-z]{1,3}(\.\d{1,2})?(\.[a-z]{1,3})?\Z"),
    min_size=1,
    max_size=30,
    unique=True,
)


@given(names, st.data())
def test_compressed_patterns_match_exactly_the_names(pool, data):
    chosen = set(data.draw(st.lists(st.sampled_from(pool), unique=True)))
    patterns = compress(chosen)
    matched = {name for name in pool if any(re.search(p, name) for p in patterns)}
    assert matched == chosen


def test_patterns_are_few():
    many = [f"model.layers.{i}.mlp.{op}" for i, op in itertools.product(range(126), ("up", "down"))]
    assert len(compress(many)) == 2


@pytest.mark.parametrize("target", ["cpu-qdq", "optimum-habana"])
@pytest.mark.parametrize(
    "quantized",
    [set(), {"model.layers.1.mlp.up_proj"}, set(list(OPS)[::3]), set(OPS)],
    ids=["none", "one", "a third", "all"],
)
def test_inc_selects_exactly_the_plan(target, quantized):
    config = config_for(plan_of(quantized), target)
    device = "cpu" if target == "cpu-qdq" else "hpu"
    assert set(selected(MODULES, config, device)) == quantized


def test_optimum_habana_gets_no_fp8_that_nobody_planned():
    config = config_for(plan_of(set(OPS)), "optimum-habana")
    added = {"a.k_cache": "KVCache", "a.fused_scaled_dot_product_attention": "ModuleFusedSDPA"}
    assert set(selected({**MODULES, **added}, config, "hpu")) == set(OPS)


def test_a_file_holds_keys_of_inc_only():
    from neural_compressor.torch.quantization.config import FP8Config

    config = config_for(plan_of(set(OPS)), "optimum-habana")
    assert config.keys() <= vars(FP8Config()).keys()
    assert config["mode"] == "QUANTIZE"
    assert "/" in config["dump_stats_path"]


def test_without_modules_the_ops_of_the_plan_are_known():
    config = to_inc_config(plan_of({"lm_head"}), "cpu-qdq")
    assert selected(OPS, config, "cpu") == ["lm_head"]


def test_the_format_is_written():
    config = to_inc_config(plan_of({"lm_head"}, lower="fp8_e5m2", base="fp32"), "cpu-qdq")
    assert (config["fp8_config"], config["hp_dtype"]) == ("E5M2", "fp32")


def test_mixed_fp8_formats_are_refused():
    plan = plan_of({"lm_head"})
    formats = {**plan.formats, "model.layers.0.mlp.up_proj": "fp8_e5m2"}
    with pytest.raises(InputError, match="one FP8 format per model"):
        config_for(replace(plan, formats=formats), "cpu-qdq")
    with pytest.raises(InputError, match="mixes fp32, bf16"):
        to_inc_config(plan_of({"lm_head"}, lower="bf16", base="fp32"), "cpu-qdq")


def test_what_inc_cannot_swap_is_refused_by_name():
    modules = {**MODULES, "lm_head": "Conv1D"}
    with pytest.raises(SelectionError, match=r"would not quantize lm_head \(class Conv1D\)"):
        config_for(plan_of({"lm_head"}), "optimum-habana", modules)


def test_unknown_target():
    with pytest.raises(InputError, match="did you mean 'optimum-habana'"):
        to_inc_config(plan_of(set()), "optimum_habana")


@pytest.mark.parametrize(
    ("lists", "expected"),
    [
        ({}, set(OPS) | {"never_run"}),
        ({"allowlist": {"names": ["lm_head"], "types": []}}, {"lm_head"}),
        ({"whitelist": {"names": ["lm_head"], "types": []}}, {"lm_head"}),
        (
            {"blocklist": {"names": [r"model\.layers\.1"], "types": ["Matmul"]}},
            {n for n in OPS if OPS[n] == "Linear" and "layers.1" not in n} | {"never_run"},
        ),
        ({"allowlist": {"names": ["nothing"], "types": []}}, set()),
    ],
    ids=["empty", "allow", "old key", "unanchored", "no match"],
)
def test_selection_is_what_inc_does(lists, expected):
    assert set(selected(MODULES, lists, "hpu")) == expected


@pytest.mark.parametrize(
    "bad",
    [{"names": ["layers.[29-31]"]}, {"names": "lm_head"}, ["lm_head"], {"names": [3]}],
    ids=["bad range", "a string", "a list", "a number"],
)
def test_malformed_lists(bad):
    with pytest.raises(InputError, match="blocklist"):
        selected(MODULES, {"blocklist": bad}, "hpu")
