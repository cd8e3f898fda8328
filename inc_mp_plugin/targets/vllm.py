"""vLLM on any hardware: it loads a checkpoint of the plan, and no file of INC's."""

from __future__ import annotations

from collections.abc import Iterable

from inc_mp_plugin.core.demands import Serving
from inc_mp_plugin.targets.layout import Captured, Layout, expert_blocks, mixtral_blocks, split
from inc_mp_plugin.targets.target import Target

# Projections that vLLM holds in one module where all of them are there, and the class of that module.
_FUSED = {
    ("q_proj", "k_proj", "v_proj"): ("qkv_proj", "QKVParallelLinear"),
    ("gate_proj", "up_proj"): ("gate_up_proj", "MergedColumnParallelLinear"),
    ("q_a_proj", "kv_a_proj_with_mqa"): ("fused_qkv_a_proj", "DeepSeekV2FusedQkvAProjLinear"),
}
_SINGLE = {
    "qkv_proj": "QKVParallelLinear",
    "q_proj": "ColumnParallelLinear",
    "q_b_proj": "ColumnParallelLinear",
    "kv_b_proj": "ColumnParallelLinear",
    "kv_a_proj_with_mqa": "ReplicatedLinear",
    "o_proj": "RowParallelLinear",
    "gate_up_proj": "MergedColumnParallelLinear",
    "down_proj": "RowParallelLinear",
    "lm_head": "ParallelLMHead",
}
_PRODUCTS = ("matmul_qk", "matmul_av")
_ROUTERS = ("gate", "router")
_NO_FP8_HEAD = "GptOssAttention"  # a module of the models whose head vLLM never quantizes
_ATTENTION_NAMES = {"GptOssAttention": "attn"}  # where that is not transformers' name
# Blocks of experts that no checkpoint in FP8 is written of, with the reason.
_UNWRITTEN = {
    "GptOssMLP": "experts with biases have no form in FP8 that vLLM reads",
    "GraniteMoeMoE": "the experts of this model are stored in a form that is not written in FP8",
}


def lay_out(captured: Captured, serving: Serving) -> Layout:
    """Lay the linear ops of a captured model out as vLLM holds them; see `Layout`.

    The test data of this repository has the modules of vLLM's own instances, of many architectures.
    """
    del serving  # the rules are the same however it is served
    places: dict[str, tuple[str, ...]] = {}
    unplaced: dict[str, str] = {}
    tree: dict[str, str] = {}
    blocks = expert_blocks(captured.ops)
    renamed = mixtral_blocks(captured, blocks)
    for block, ops in blocks.items():
        why = _UNWRITTEN.get(captured.modules.get(block, ""), "")
        if why:
            unplaced.update(dict.fromkeys(ops, why))
            continue
        module = f"{renamed.get(block, block)}.experts.routed_experts"
        tree[module] = "RoutedExperts"
        places.update(dict.fromkeys(ops, (module,)))
    experts = {op for ops in blocks.values() for op in ops}
    others = [op for op in captured.ops if op not in experts]
    fused = _fused(others)
    for op in others:
        why = _unplaced(op, captured)
        if why:
            unplaced[op] = why
            continue
        parent, child = split(op)
        name, kind = fused.get(op) or (child, _SINGLE.get(child, ""))
        if kind:
            parent = _renamed(captured, parent)
            places[op] = (f"{parent}.{name}" if parent else name,)
            tree[places[op][0]] = kind
        else:
            unplaced[op] = f"where vLLM holds a {child!r} is not known here"
    return Layout((tree,), places, unplaced=unplaced)


def _fused(ops: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Map ops that are part of a fused module to its name in their parent, and its class."""
    there = set(ops)
    modules = {}
    for parent in {split(op)[0] for op in there}:
        for parts, module in _FUSED.items():
            members = [f"{parent}.{part}" for part in parts]
            if there.issuperset(members):
                modules.update(dict.fromkeys(members, module))
    return modules


def _unplaced(op: str, captured: Captured) -> str:
    """Say why vLLM runs no such op in FP8; nothing where it may."""
    if op in captured.tied:
        return "it shares the embedding's weight, which stays in the base format"
    child = split(op)[1]
    if child in _PRODUCTS:
        return "a checkpoint holds no product of attention in FP8"
    if child in _ROUTERS:
        return "vLLM runs most routers in the base format alone"
    if child == "lm_head" and _NO_FP8_HEAD in captured.modules.values():
        return "vLLM runs the head of this model in the base format alone"
    return ""


def _renamed(captured: Captured, module: str) -> str:
    """Return vLLM's name of a module that holds projections."""
    name = _ATTENTION_NAMES.get(captured.modules.get(module, ""))
    return module if name is None else f"{split(module)[0]}.{name}"


VLLM = Target(
    name="vllm",
    device=None,
    lay_out=lay_out,
    formats=("fp8_e4m3",),
    kinds=("linear",),
    scale_methods=("dynamic",),
)
