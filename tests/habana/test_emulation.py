"""The harness itself: what INC measures and patches, and that its FP8 is close to BF16."""

import collections
import json
from pathlib import Path

import pytest
from choices import (
    ATTENTIONS,
    OF_ATTENTION,
    OTHER_ATTENTION,
    all_but,
    allowed,
    candidates,
    ending,
    only,
    patched,
)
from emulation import measured, quantized, run
from habana_frameworks import device
from models import NAMES, gaudi, prompts

each_name = pytest.mark.parametrize("name", NAMES)
each_attention = pytest.mark.parametrize("attention", ATTENTIONS)
each_cache = pytest.mark.parametrize("reuse_cache", (False, True), ids=("fresh", "reuse"))


def relative(actual, expected):
    return float((actual - expected).norm() / expected.norm())


PATCHED = {"Linear": 15, "KVCache": 4}
EAGER, FLASH = {"Matmul": 4}, {"ModuleFusedSDPA": 2}
MIXTRAL = {"Linear": 35, "KVCache": 4, "ModuleFusedSDPA": 2, "GaudiMixtralSparseMoeBlock": 2}
COUNTS = {(name, "eager"): ({**PATCHED, **EAGER}, 2) for name in NAMES}
COUNTS |= {(name, "flash"): ({**PATCHED, **FLASH}, 4) for name in NAMES}
COUNTS |= {("mixtral", attention): (MIXTRAL, 0) for attention in ATTENTIONS}
COUNTS["qwen3_moe", "eager"] = ({**PATCHED, **EAGER, "Linear": 11}, 2)
COUNTS["qwen3_moe", "flash"] = ({**PATCHED, **FLASH, "Linear": 11}, 4)


@each_attention
@each_name
def test_what_inc_patches(name, attention, measurements):
    classes, idle = COUNTS[name, attention]
    expected = {f"Patched{cls}": count for cls, count in classes.items()}
    if idle:
        expected["PatchedUnmeasuredModule"] = idle
    model = quantized(name, attention, measurements, only(allowed(name)))
    assert collections.Counter(patched(model).values()) == expected


@each_attention
@each_name
def test_measurement_with_empty_lists_covers_what_runs(name, attention, measurements):
    base = measured(name, attention, measurements)
    nodes = json.loads(Path(f"{base['dump_stats_path']}_hooks_maxabs.json").read_text())["Nodes"]
    idle = [] if name == "mixtral" else ending(name, *OF_ATTENTION[OTHER_ATTENTION[attention]])
    assert set(nodes) == set(allowed(name)) - set(idle)


@each_name
def test_allowlist_and_blocklist_select_the_same(name, measurements):
    modules = allowed(name)
    chosen = [module for i, module in enumerate(modules) if i % 3]
    rest = set(candidates(gaudi(name))) - set(chosen)
    by_allowlist = patched(quantized(name, "flash", measurements, only(chosen)))
    assert set(by_allowlist) == set(chosen)
    assert by_allowlist == patched(quantized(name, "flash", measurements, all_but(rest)))
    assert patched(quantized(name, "flash", measurements, only([]))) == {}


@each_cache
@each_attention
@each_name
def test_fp8_is_close_to_bf16(name, attention, reuse_cache, measurements):
    bf16 = run(gaudi(name), attention=attention, reuse_cache=reuse_cache)
    fp8 = run(
        quantized(name, attention, measurements, only(allowed(name))),
        attention=attention,
        reuse_cache=reuse_cache,
    )
    length = prompts()["input_ids"].shape[1]
    assert 0.02 < relative(fp8.forward[:, length - 1], bf16.forward[:, length - 1]) < 0.4
    assert relative(bf16.generated, bf16.recomputed) < 0.03
    assert 0 < relative(fp8.generated, fp8.recomputed) < 0.2


@each_cache
@each_name
def test_buckets_change_which_part_of_the_caches_is_read_only(name, reuse_cache, measurements):
    for lists in (only([]), only(allowed(name))):
        model = quantized(name, "flash", measurements, lists)
        options = {"attention": "flash", "reuse_cache": reuse_cache, "new_tokens": 6}
        whole, pieces = run(model, **options), run(model, **options, bucket_size=4)
        assert pieces.tokens.equal(whole.tokens)
        assert relative(pieces.generated, whole.generated) < 0.02


@each_name
def test_fp8_weights_are_within_the_range_of_the_device(name, measurements):
    model = quantized(name, "flash", measurements, only(allowed(name)))
    for module, cls in patched(model).items():
        if cls == "PatchedLinear":
            weight = model.get_submodule(module).weight
            assert weight.dtype.itemsize == 1
            assert weight.float().abs().max() <= device.largest_fp8()
