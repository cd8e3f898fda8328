"""Our files in the hands of optimum-habana's code and INC's modules for Gaudi: random plans, every mix."""

import itertools
import random
from functools import cache

import pytest
import torch
from choices import FUSED, candidates, patched
from emulation import quantized, run
from models import NAMES, gaudi, prompts, stock

import inc_mp_plugin as mp
from inc_mp_plugin.core.errors import SelectionError
from inc_mp_plugin.inc.config import config_of
from inc_mp_plugin.targets import OPTIMUM_HABANA
from inc_mp_plugin.targets.layout import Captured
from inc_mp_plugin.targets.rules import demands, legality

PLANS = 200
SERVINGS = [
    mp.Serving(cache_format, attention, reuse)
    for cache_format, attention, reuse in itertools.product(
        ("bf16", "fp8"), ("eager", "flash"), (False, True)
    )
]


@cache
def captured(name, code):
    """The same model as transformers' code has it, or optimum-habana's own."""
    model = {"stock": stock, "gaudi": lambda name: gaudi(name, torch.float32)}[code](name)
    return mp.capture(model, {"input_ids": prompts()["input_ids"]})


def file_of(name, code, lowered, serving):
    graph = captured(name, code)
    formats = {op.name: "fp8_e4m3" if op.name in lowered else "bf16" for op in graph.ops}
    return config_of("bf16", formats, OPTIMUM_HABANA, Captured.of(graph), serving=serving)


def lists_of(config):
    return {key: config[key] for key in ("allowlist", "blocklist")}


def random_plan(graph, serving, generator):
    """Ops in FP8: each tie whole or not at all, what the consumer fixes as it does."""
    demanded = demands(graph, ["optimum-habana"], serving)
    tied = {op for tie in demanded.ties for op in tie.ops}
    units = [tie.ops for tie in demanded.ties]
    units += [(op.name,) for op in graph.ops if op.name not in tied | set(demanded.lowered)]
    share, lowered = generator.random(), set(demanded.lowered)
    for unit in units:
        if demanded.kept.keys().isdisjoint(unit) and generator.random() < share:
            lowered.update(unit)
    return lowered


def by_hand(name, lowered, serving):
    """Modules that must be in FP8, from the names alone."""
    flash = serving.attention == "flash" or name == "mixtral"
    found = set()
    for op in lowered:
        parent, _, child = op.rpartition(".")
        found.add(f"{parent}.{FUSED}" if flash and child in ("matmul_qk", "matmul_av") else op)
        if ".experts." in op:
            found.add(op.split(".experts.")[0])
    if serving.kv_cache == "fp8":
        found |= {f"model.layers.{i}.self_attn.{c}_cache" for i in (0, 1) for c in "kv"}
    return found


@pytest.mark.parametrize("name", NAMES)
def test_random_plans_run_as_planned(name, measurements):
    """Whoever calibrated, INC replaces exactly the planned modules, and prefill and decode run."""
    generator = random.Random(name)
    for _ in range(PLANS):
        code, serving = generator.choice(("stock", "gaudi")), generator.choice(SERVINGS)
        lowered = random_plan(captured(name, code), serving, generator)
        config = file_of(name, code, lowered, serving)
        model = quantized(name, serving.attention, measurements, lists_of(config))
        assert set(patched(model)) == by_hand(name, lowered, serving)
        assert "PatchedUnmeasuredModule" not in patched(model).values()
        run(model, attention=serving.attention, reuse_cache=serving.reuse_cache, new_tokens=2)


@pytest.mark.parametrize("reuse", [False, True], ids=["", "reused cache"])
@pytest.mark.parametrize("attention", ["eager", "flash"])
@pytest.mark.parametrize("name", NAMES)
def test_what_the_rules_refuse_is_what_fails(name, attention, reuse, measurements):
    """Every mix of the modules around one cache, the same in both layers, all other modules in BF16."""
    serving = mp.Serving("bf16", attention, reuse)
    layout = OPTIMUM_HABANA.lay_out(Captured.of(captured(name, "gaudi")), serving)
    kinds = ("k_proj", "k_cache", "v_cache")
    for chosen in itertools.product((False, True), repeat=len(kinds)):
        ends = {kind for kind, low in zip(kinds, chosen, strict=True) if low}
        wanted = {m for m in candidates(gaudi(name)) if m.split(".")[-1] in ends}
        names = [f"^{m}$".replace(".", r"\.") for m in sorted(wanted)]
        lists = {"allowlist": {"types": [], "names": names}, "blocklist": {"types": [], "names": []}}
        if not names:
            lists["blocklist"]["names"] = [".*"]
        model = quantized(name, attention, measurements, lists)
        failed = False
        try:
            run(model, attention=attention, reuse_cache=reuse, new_tokens=2)
        except RuntimeError as error:
            failed = "index_copy_" in str(error)
            assert failed, error
        assert bool(legality(layout, wanted)) == failed, ends


@pytest.mark.parametrize(
    ("name", "ends", "serving", "why"),
    [
        ("qwen2", ["k_proj"], mp.Serving(), "format of the key projection"),
        ("llama", [], mp.Serving("fp8"), "FP8 keys only"),
        ("mixtral", ["w1"], mp.Serving(), "one kernel runs all experts"),
        ("mixtral", ["w1", "w3"], mp.Serving(), "one kernel runs all experts"),
        ("qwen3_moe", ["gate_proj"], mp.Serving(), "INC never measures the experts"),
        ("llama", ["matmul_qk"], mp.Serving(attention="flash"), f"one {FUSED}"),
    ],
)
@pytest.mark.parametrize("code", ["stock", "gaudi"])
def test_illegal_mixes_are_refused_before_writing(name, ends, serving, why, code):
    graph = captured(name, code)
    lowered = {op.name for op in graph.ops if op.name.split(".")[-1] in ends}
    with pytest.raises(SelectionError, match=why):
        file_of(name, code, lowered, serving)


@pytest.mark.parametrize("name", NAMES)
def test_both_calibrations_give_the_same_file(name):
    """Where the same ops are lowered: one calibration serves on any machine."""
    for serving in SERVINGS:
        low = {}
        for code in ("stock", "gaudi"):
            graph = captured(name, code)
            kept = demands(graph, ["optimum-habana"], serving).kept
            products = name == "mixtral"  # of its fused attention only transformers' code has the products
            low[code] = {
                op.name for op in graph.ops if op.name not in kept and not (products and op.kind == "bgemm")
            }
        files = [file_of(name, code, low[code], serving) for code in ("stock", "gaudi")]
        assert files[0] == files[1]
