"""vLLM on Gaudi: it fuses projections, and its attention and experts are modules of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from inc_mp_plugin.core.demands import Serving
from inc_mp_plugin.targets.layout import (
    DECODE,
    PREFILL,
    Captured,
    Layout,
    Rule,
    attention_layers,
    expert_blocks,
    expert_role,
    mixtral_blocks,
    split,
)
from inc_mp_plugin.targets.target import Target

# Where vLLM holds a projection, and the class of that module.
_LINEAR = {
    "q_proj": ("qkv_proj", "QKVParallelLinear"),
    "k_proj": ("qkv_proj", "QKVParallelLinear"),
    "v_proj": ("qkv_proj", "QKVParallelLinear"),
    "qkv_proj": ("qkv_proj", "QKVParallelLinear"),
    "o_proj": ("o_proj", "RowParallelLinear"),
    "gate_proj": ("gate_up_proj", "MergedColumnParallelLinear"),
    "up_proj": ("gate_up_proj", "MergedColumnParallelLinear"),
    "gate_up_proj": ("gate_up_proj", "MergedColumnParallelLinear"),
    "down_proj": ("down_proj", "RowParallelLinear"),
    "lm_head": ("lm_head", "ParallelLMHead"),
}
_ATTENTION = {
    "matmul_qk": "Matmul",
    "matmul_av": "Matmul",
    "batch2block_matmul": "B2BMatmul",
    "block2batch_matmul": "B2BMatmul",
    "softmax": "Softmax",
    "k_cache": "VLLMKVCache",
    "v_cache": "VLLMKVCache",
    "fused_scaled_dot_product_attention": "ModuleFusedSDPA",
}
_PRODUCTS = ("matmul_qk", "matmul_av")
# vLLM takes the embedding itself as the head of these models, if they share it.
_HEADLESS = {"Qwen2Attention", "Qwen3Attention"}
_ATTENTION_NAMES = {"GptOssAttention": "attn"}  # where that is not transformers' name
_GATED = {"GraniteMoeMoE"}  # blocks whose `router` of transformers is a `gate`, as in most blocks
# Since vLLM 0.24 the experts stand one level deeper, in classes that INC does not know.
_EXPERTS = (("experts", "FusedMoE"), ("experts.routed_experts", "RoutedExperts"))


def lay_out(captured: Captured, serving: Serving) -> Layout:
    """Lay a captured model out as vLLM on Gaudi holds it; see `Layout`."""
    del serving  # the rules are the same however it is served
    places, unplaced, shared = _place_singles(captured)
    attentions = attention_layers(captured.modules)
    for attention in attentions:
        impl = f"{attention}.attn.impl"
        shared.update({f"{impl}.{child}": kind for child, kind in _ATTENTION.items()})
    caches = tuple(f"{a}.attn.impl.{child}" for a in attentions for child in ("k_cache", "v_cache"))
    trees = [dict(shared), dict(shared)]
    blocks = expert_blocks(captured.ops)
    renamed = mixtral_blocks(captured, blocks)
    owners = {block: renamed.get(block, block) for block in blocks}
    routers = {block: f"{owner}.{_router(captured, block)}" for block, owner in owners.items()}
    for tree in trees:
        tree.update(dict.fromkeys(routers.values(), "ReplicatedLinear"))
    rules = [rule for block, ops in blocks.items() for rule in _place(owners[block], ops, trees, places)]
    products = frozenset(op for op in places if split(op)[1] in _PRODUCTS)
    if caches:
        rules.append(Rule(caches, "one --kv-cache-dtype holds for all layers"))
    if not blocks:
        trees = trees[:1]
    idle = {PREFILL: products, DECODE: frozenset[str]()}
    return Layout(
        tuple(trees),
        places,
        tuple(rules),
        unplaced=unplaced,
        caches=caches,
        cached=products,
        idle=idle,
        routers=tuple(routers.values()),
    )


def _place_singles(
    captured: Captured,
) -> tuple[dict[str, tuple[str, ...]], dict[str, str], dict[str, str]]:
    """Place the ops that are no experts.

    Returns:
        The modules of each op, the reasons of those that have none, and the classes of the modules.
    """
    places: dict[str, tuple[str, ...]] = {}
    unplaced: dict[str, str] = {}
    kinds: dict[str, str] = {}
    headless = not _HEADLESS.isdisjoint(captured.modules.values())
    for op in captured.ops:
        parent, child = split(op)
        if op in captured.tied and headless:
            unplaced[op] = "vLLM has no module for a head of this model that shares the embedding's weight"
        elif child in _PRODUCTS:
            places[op] = (f"{parent}.attn.impl.{child}",)
        elif child in _LINEAR and expert_role(op) is None:
            name, kind = _LINEAR[child]
            parent = _renamed(captured, parent)
            places[op] = (f"{parent}.{name}" if parent else name,)
            kinds[places[op][0]] = kind
        elif expert_role(op) is None:
            unplaced[op] = f"where vLLM on Gaudi holds a {child!r} is not known here"
    return places, unplaced, kinds


def _renamed(captured: Captured, module: str) -> str:
    """Return vLLM's name of a module that holds projections."""
    name = _ATTENTION_NAMES.get(captured.modules.get(module, ""))
    return module if name is None else f"{split(module)[0]}.{name}"


def _router(captured: Captured, block: str) -> str:
    has_router = f"{block}.router" in captured.modules and captured.modules.get(block) not in _GATED
    return "router" if has_router else "gate"


def _place(
    owner: str,
    ops: Mapping[str, tuple[int, str]],
    trees: Iterable[dict[str, str]],
    places: dict[str, tuple[str, ...]],
) -> Iterator[Rule]:
    """Enter a block of experts into each tree, and its ops into the places; yield its rule for each tree."""
    for tree, (path, kind) in zip(trees, _EXPERTS, strict=True):
        modules = dict(_experts(f"{owner}.{path}", kind, {number for number, _ in ops.values()}))
        tree.update(modules)
        for op, (number, role) in ops.items():
            part = "w2_list" if role == "down" else "w13_list"
            places[op] = (*places.get(op, ()), f"{owner}.{path}.moe_op.{part}.{number}")
        members = tuple(name for name, class_name in modules.items() if class_name != "RoutedExperts")
        yield Rule(members, "one kernel runs all experts of a block")


def _experts(path: str, kind: str, numbers: set[int]) -> Iterator[tuple[str, str]]:
    """Yield the modules of the experts of a block, with their classes."""
    yield path, kind
    yield f"{path}.moe_op", "VllmMixtureOfExpertsOp"
    for number in sorted(numbers):
        yield f"{path}.moe_op.w13_list.{number}", "MoeMatmul"
        yield f"{path}.moe_op.w2_list.{number}", "MoeMatmul"


VLLM_GAUDI = Target(
    name="vllm-gaudi",
    device="hpu",
    lay_out=lay_out,
    scale_methods=("maxabs_hw", "maxabs_pow2", "maxabs_arbitrary"),
)
