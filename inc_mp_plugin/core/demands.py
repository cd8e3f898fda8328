"""Demands of the consumers of a plan on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import get_args

from inc_mp_plugin.core.errors import InputError, unknown
from inc_mp_plugin.core.literals import Attention, KVCache


@dataclass(frozen=True, slots=True)
class Serving:
    """Settings of how a model is served on Gaudi that decide what can run in which format.

    `kv_cache` is "bf16" (the base format) or "fp8"; `attention` is "eager" (two products) or "flash"
    (one kernel), of optimum-habana; `reuse_cache` is its option of that name. vLLM chooses its attention
    itself: a fused kernel for prompts, products for decoding.
    """

    kv_cache: KVCache = "bf16"
    attention: Attention = "eager"
    reuse_cache: bool = False

    def __post_init__(self) -> None:
        """Refuse what there is not.

        Raises:
            InputError: kv_cache or attention is not one of these words.
        """
        for key, allowed in (("kv_cache", KVCache), ("attention", Attention)):
            if getattr(self, key) not in get_args(allowed):
                raise InputError(unknown(key, getattr(self, key), get_args(allowed)))


@dataclass(frozen=True, slots=True)
class Tie:
    """Ops that share one format in every plan; `why` names what ties them."""

    ops: tuple[str, ...]
    why: str


@dataclass(frozen=True)
class Demands:
    """Rules that a plan must keep to so that its consumers can run it.

    `kept` ops stay in the base format and `lowered` ones leave it, each with the reason; `cached` are
    bgemms that read their second input from a KV cache in FP8, rounded whatever their own format.
    """

    targets: tuple[str, ...] = ()
    serving: Serving = Serving()
    ties: tuple[Tie, ...] = ()
    kept: Mapping[str, str] = field(default_factory=dict)
    lowered: Mapping[str, str] = field(default_factory=dict)
    cached: frozenset[str] = frozenset()


NO_DEMANDS = Demands()


def kept_lines(reasons: Mapping[str, str], base: str) -> list[str]:
    """List why ops stay in the base format, one line per reason; `reasons` holds that of each op.

    Example:
        >>> kept_lines({"q": "it is tied", "k": "it is tied"}, "bf16")
        ['2 ops stay in bf16: it is tied']
    """
    return [f"{count} ops stay in {base}: {why}" for why, count in Counter(reasons.values()).items()]
