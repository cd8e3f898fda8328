"""optimum-habana on Gaudi: its module names are those of transformers 4, with a few modules added."""

from __future__ import annotations

from inc_mp_plugin.core.demands import Serving
from inc_mp_plugin.targets.layout import (
    Captured,
    Layout,
    Need,
    Rule,
    attention_layers,
    expert_blocks,
    mixtral_blocks,
    split,
)
from inc_mp_plugin.targets.target import Target

# Its Mixtral has no product modules: attention is always the fused kernel.
_ALWAYS_FLASH = {"MixtralAttention", "GaudiMixtralAttention"}
# Its Llama casts keys to the format of the cache; other models allocate the cache in k_proj's format.
_CASTS_KEYS = {"LlamaAttention", "GaudiLlamaAttention"}
_MIXTRAL_NAMES = {"gate": "w1", "up": "w3", "down": "w2"}
_KEYS = ("k_proj", "qkv_proj", "query_key_value", "c_attn")


def lay_out(captured: Captured, serving: Serving) -> Layout:
    """Lay a captured model out as optimum-habana's code holds it; see `Layout`."""
    blocks = expert_blocks(captured.ops)
    new = mixtral_blocks(captured, blocks)
    names = {
        op: f"{new[block]}.experts.{number}.{_MIXTRAL_NAMES[role]}"
        for block in new
        for op, (number, role) in blocks[block].items()
    }
    routers = [f"{new.get(block, block)}.gate" for block in blocks]
    tree = {_renamed(name, new, names): kind for name, kind in captured.modules.items()}
    tree |= dict.fromkeys([*names.values(), *routers], "Linear")
    tree |= dict.fromkeys(new.values(), "GaudiMixtralSparseMoeBlock")
    kept = {
        op: "INC never measures the experts of this model on optimum-habana, which runs them in one kernel"
        for block in blocks.keys() - new.keys()
        for op in blocks[block]
    }
    moe = [
        Rule((new[block], *(names[op] for op in blocks[block])), "one kernel runs all experts of a block")
        for block in new
    ]
    places: dict[str, tuple[str, ...]] = {op: (names.get(op, op),) for op in captured.ops}
    layers = {name: _attention(name, captured, serving) for name in attention_layers(captured.modules)}
    for name, layer in layers.items():
        tree |= layer.trees[0]
        places |= {op: modules for op, modules in layer.places.items() if op in places}
        if captured.modules.get(name) in _ALWAYS_FLASH:
            for product in layer.cached:
                tree.pop(product, None)
    return Layout(
        (tree,),
        places,
        (*moe, *(rule for layer in layers.values() for rule in layer.rules)),
        tuple(need for layer in layers.values() for need in layer.needs),
        kept,
        caches=tuple(cache for layer in layers.values() for cache in layer.caches),
        cached=frozenset(op for layer in layers.values() for op in layer.cached if op in places),
        resting={module: instead for layer in layers.values() for module, instead in layer.resting.items()},
        routers=tuple(routers),
    )


def _attention(name: str, captured: Captured, serving: Serving) -> Layout:
    """Lay one attention layer out: its products, and the modules that optimum-habana adds to them."""
    kind = captured.modules.get(name, "")
    products = (f"{name}.matmul_qk", f"{name}.matmul_av")
    caches = (f"{name}.k_cache", f"{name}.v_cache")
    fused = f"{name}.fused_scaled_dot_product_attention"
    key = next((f"{name}.{child}" for child in _KEYS if f"{name}.{child}" in captured.modules), None)
    rules, needs = list[Rule](), list[Need]()
    if key is not None and not serving.reuse_cache and kind in _CASTS_KEYS:
        rules.append(Rule(caches, "keys and values are cached in one format"))
        needs.append(Need(caches[0], key, "without --reuse_cache an FP8 cache takes FP8 keys only"))
    elif key is not None and not serving.reuse_cache:
        why = "without --reuse_cache this model allocates its cache in the format of the key projection"
        rules.append(Rule((key, *caches), why))
    flash = serving.attention == "flash" or kind in _ALWAYS_FLASH
    return Layout(
        ({fused: "ModuleFusedSDPA", **dict.fromkeys(caches, "KVCache")},),
        {op: (fused if flash else op,) for op in products},
        tuple(rules),
        tuple(needs),
        caches=caches,
        cached=frozenset(products),
        resting=dict.fromkeys(products, fused) if flash else {fused: products[0]},
    )


def _renamed(name: str, blocks: dict[str, str], experts: dict[str, str]) -> str:
    """Return the name of a captured module on optimum-habana."""
    if name in experts:
        return experts[name]
    parent, rest = name, ""
    while parent and parent not in blocks:
        parent, child = split(parent)
        rest = f".{child}{rest}"
    return blocks[parent] + rest if parent else name


OPTIMUM_HABANA = Target(
    name="optimum-habana",
    device="hpu",
    lay_out=lay_out,
    scale_methods=(
        "maxabs_hw",
        "maxabs_pow2",
        "maxabs_arbitrary",
        "act_maxabs_hw_weights_pcs_maxabs_pow2",
        "act_maxabs_pow2_weights_pcs_maxabs_pow2",
    ),
)
