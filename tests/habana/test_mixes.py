"""Which mixes of FP8 and BF16 run on optimum-habana, and which do not.

Every expectation was found by running; the tables are written down by hand, for the rules of the package to
be held against.
"""

import itertools
import random

import pytest
from choices import (
    ATTENTIONS,
    FUSED,
    OF_ATTENTION,
    OTHER_ATTENTION,
    all_but,
    allowed,
    ending,
    experts,
    only,
    patched,
)
from emulation import measure, quantize, quantized, run
from models import NAMES, gaudi

UNMEASURED = "was called but was not quantized because no measures were supplied"

each_name = pytest.mark.parametrize("name", NAMES)
each_attention = pytest.mark.parametrize("attention", ATTENTIONS)
each_cache = pytest.mark.parametrize("reuse_cache", (False, True), ids=("fresh", "reuse"))


def unmeasured(path):
    """A base config that nothing was measured for."""
    return {"dump_stats_path": str(path / "measure"), "scale_method": "maxabs_hw"}


# Which of (k_proj, k_cache, v_cache) of a layer run in FP8 together, where caches are not reused.
CACHES_LEGAL = {name: {(0, 0, 0), (1, 1, 1)} for name in NAMES}
CACHES_LEGAL["llama"] = {(0, 0, 0), (1, 0, 0), (1, 1, 1)}
CACHES = ("k_proj", "k_cache", "v_cache")


@each_cache
@each_attention
@each_name
def test_key_and_value_caches(name, attention, reuse_cache, measurements):
    legal = set()
    for mix in itertools.product((0, 1), repeat=3):
        chosen = ending(name, *(end for end, fp8 in zip(CACHES, mix, strict=True) if fp8))
        model = quantized(name, attention, measurements, only(chosen))
        run(model, attention=attention, reuse_cache=reuse_cache, new_tokens=1)  # prefill never fails
        try:
            run(model, attention=attention, reuse_cache=reuse_cache)
        except RuntimeError as error:
            assert "index_copy_" in str(error)
        else:
            legal.add(mix)
    assert legal == (set(itertools.product((0, 1), repeat=3)) if reuse_cache else CACHES_LEGAL[name])


@each_attention
@pytest.mark.parametrize("caches", (False, True), ids=("bf16-caches", "fp8-caches"))
@each_name
def test_attention_products_are_free(name, caches, attention, measurements):
    """Products, fused attention and v_proj, each in either format, with caches in either format."""
    ends = [end for end in ("v_proj", "matmul_qk", "matmul_av", FUSED) if ending(name, end)]
    for mix in itertools.product((0, 1), repeat=len(ends)):
        chosen = ending(name, *(end for end, fp8 in zip(ends, mix, strict=True) if fp8))
        chosen += ending(name, *CACHES) if caches else []
        model = quantized(name, attention, measurements, only(chosen))
        run(model, attention=attention, new_tokens=2)


def random_plan(name, reuse_cache, generator):
    """A random format per module, most layers with caches that go together; and whether it is legal."""
    chosen = {m: generator.random() < 0.5 for m in allowed(name)}
    legal = True
    for module in ending(name, "k_proj"):
        prefix = module.removesuffix("k_proj")
        every = list(itertools.product((0, 1), repeat=3))
        mix = generator.choice(every if generator.random() < 0.2 else sorted(CACHES_LEGAL[name]))
        chosen.update({prefix + end: bool(fp8) for end, fp8 in zip(CACHES, mix, strict=True)})
        legal = legal and (reuse_cache or mix in CACHES_LEGAL[name])
    if name == "mixtral":
        for block in ending(name, "block_sparse_moe"):
            chosen.update({m: chosen[block] for m in experts(name) if m.startswith(f"{block}.")})
    return [module for module, fp8 in chosen.items() if fp8], legal


@each_cache
@each_attention
@each_name
def test_random_plans_run_exactly_if_legal(name, attention, reuse_cache, measurements):
    for seed in range(10):
        chosen, legal = random_plan(name, reuse_cache, random.Random(f"{name}{seed}"))
        model = quantized(name, attention, measurements, only(chosen))
        assert set(patched(model)) == set(chosen)
        if legal:
            run(model, attention=attention, reuse_cache=reuse_cache, new_tokens=2)
        else:
            with pytest.raises(RuntimeError, match="index_copy_"):
                run(model, attention=attention, reuse_cache=reuse_cache, new_tokens=2)


@each_attention
@pytest.mark.parametrize("name", [name for name in NAMES if name != "mixtral"])
def test_attention_must_be_measured_as_it_is_run(name, attention, measurements):
    other = OTHER_ATTENTION[attention]
    with pytest.raises(Exception, match=UNMEASURED):
        run(quantized(name, attention, measurements, only(allowed(name))), attention=other)
    without = set(allowed(name)) - set(ending(name, *OF_ATTENTION[other]))
    run(quantized(name, attention, measurements, only(without)), attention=other)
    lists = only(allowed(name))
    run(quantized(name, attention, measurements, lists, ignore_modules_wo_measures=True), attention=other)


@each_attention
def test_mixtral_runs_the_same_attention_in_both_modes(attention, measurements):
    run(quantized("mixtral", attention, measurements, {}), attention=OTHER_ATTENTION[attention])


MIXTRAL_ILLEGAL = {
    "block alone": lambda block, matrices: block,
    "experts alone": lambda block, matrices: matrices,
    "one matrix alone": lambda block, matrices: matrices[:1],
    "one expert alone": lambda block, matrices: [m for m in matrices if ".experts.0." in m],
    "all but one matrix": lambda block, matrices: block + matrices[:-1],
    "all but the w2": lambda block, matrices: block + [m for m in matrices if not m.endswith("w2")],
}


@pytest.mark.parametrize("which", MIXTRAL_ILLEGAL)
def test_a_mixtral_block_is_all_or_nothing(which, measurements):
    chosen = MIXTRAL_ILLEGAL[which](ending("mixtral", "block_sparse_moe"), experts("mixtral"))
    model = quantized("mixtral", "flash", measurements, only(chosen))
    with pytest.raises((AttributeError, RuntimeError), match="scale_weight|shapes cannot be multiplied"):
        run(model, attention="flash", new_tokens=0)


@pytest.mark.parametrize("gate", (False, True))
def test_mixtral_blocks_may_differ_and_the_router_is_free(gate, measurements):
    first = [m for m in ending("mixtral", "block_sparse_moe") + experts("mixtral") if ".layers.0." in m]
    chosen = first + (ending("mixtral", "gate") if gate else [])
    run(quantized("mixtral", "flash", measurements, only(chosen)), attention="flash")


@pytest.mark.parametrize("matrices", (slice(None), slice(1)), ids=("all", "one"))
def test_qwen3_moe_experts_stay_in_bf16(matrices, measurements):
    chosen = experts("qwen3_moe")[matrices]
    with pytest.raises(AttributeError, match="'PatchedUnmeasuredModule' object has no attribute 'weight'"):
        run(quantized("qwen3_moe", "flash", measurements, only(chosen)), attention="flash", new_tokens=0)
    model = quantized("qwen3_moe", "flash", measurements, only(chosen), ignore_modules_wo_measures=True)
    assert patched(model) == {}
    run(model, attention="flash")


def test_empty_lists_break_qwen3_moe(measurements):
    with pytest.raises(AttributeError, match="'PatchedUnmeasuredModule' object has no attribute 'weight'"):
        run(quantized("qwen3_moe", "flash", measurements, {}), attention="flash", new_tokens=0)


def test_a_module_that_was_not_measured_may_not_be_selected(tmp_path):
    base = unmeasured(tmp_path)
    measure(gaudi("llama"), {**base, **all_but(["lm_head"])}, attention="flash")
    with pytest.raises(Exception, match=f"'lm_head' {UNMEASURED}"):
        run(quantize(gaudi("llama"), base), attention="flash", new_tokens=0)
    run(quantize(gaudi("llama"), {**base, **all_but(["lm_head"])}), attention="flash")


@each_cache
def test_caches_must_be_measured_to_be_quantized(reuse_cache, tmp_path):
    base = unmeasured(tmp_path)
    measure(gaudi("llama"), base, attention="flash", use_cache=False)
    model = quantize(gaudi("llama"), base)
    run(model, attention="flash", new_tokens=0)
    with pytest.raises(AttributeError, match="update|allocate"):
        run(model, attention="flash", reuse_cache=reuse_cache)
    model = quantize(gaudi("llama"), {**base, **all_but(ending("llama", "k_cache", "v_cache"))})
    run(model, attention="flash", reuse_cache=reuse_cache)
