"""From the layouts of consumers to demands on a plan, and whether a plan keeps to them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence

from inc_mp_plugin.core.demands import Demands, Serving, Tie
from inc_mp_plugin.core.errors import InputError, SelectionError
from inc_mp_plugin.core.graph import Graph
from inc_mp_plugin.targets import get_target
from inc_mp_plugin.targets.layout import Captured, Layout, components, split

FP8 = "fp8"
_ADAPTED = "base_model.model"  # where a PeftModel keeps the model that it adapts


def demands_of(
    layouts: Mapping[str, Layout],
    captured: Captured,
    serving: Serving,
    held_back: Mapping[str, str] | None = None,
) -> Demands:
    """Combine layouts into what a plan must keep to so that all these consumers can run it.

    Ops that a consumer runs in one module, or in modules that a rule of its ties, share one format.
    Where such a set holds the KV cache, or a module that stays in the base format, its format is given.

    Args:
        layouts: of each consumer, by its name.
        captured: the model.
        serving: how it is served.
        held_back: ops that stay in the base format for other reasons, such as that INC has no scale for them.

    Raises:
        InputError: an op would have to be in two formats at once.
    """
    sets: list[list[tuple[str, str]]] = []
    whys: dict[tuple[str, str], str] = {}
    kept = {("", op): why for op, why in (held_back or {}).items()}
    lowered: dict[tuple[str, str], str] = {}
    fp8_cache = serving.kv_cache == FP8
    for target, layout in layouts.items():
        sets += [[("", op), *((target, m) for m in modules)] for op, modules in layout.places.items()]
        sets += [[(target, module) for module in rule.modules] for rule in layout.rules]
        whys.update({(target, m): f"{target}: {why}" for m, why in _reasons(layout)})
        kept.update({(target, m): f"{target}: {why}" for m, why in layout.kept.items()})
        kept.update({("", op): f"{target}: {why}" for op, why in layout.unplaced.items()})
        fixed = lowered if fp8_cache else kept
        fixed.update({(target, m): f"{target}: kv_cache is {serving.kv_cache}" for m in layout.caches})
        if fp8_cache:
            lowered.update({(target, n.needed): f"{target}: {n.why}" for n in layout.needs})
    sets += [[member] for member in kept]
    order = {op: index for index, op in enumerate(captured.ops)}
    ties, stay, leave = [], dict[str, str](), dict[str, str]()
    for members in components(sets):
        ops = sorted((name for target, name in members if not target), key=order.__getitem__)
        down, up, tied = (_reasons_of(members, reasons) for reasons in (kept, lowered, whys))
        if ops and down and up:
            message = (
                f"{ops[0]!r} must run in FP8 ({up[0]}) and must not ({down[0]}); change kv_cache or targets"
            )
            raise InputError(message)
        stay.update((op, down[0]) for op in ops if down)
        leave.update((op, up[0]) for op in ops if up)
        if len(ops) > 1 and not down and not up:
            ties.append(Tie(tuple(ops), "; ".join(tied)))
    ties.sort(key=lambda tie: order[tie.ops[0]])
    readers = (layout.cached for layout in layouts.values() if fp8_cache and layout.caches)
    return Demands(tuple(layouts), serving, tuple(ties), stay, leave, frozenset[str]().union(*readers))


def demands(
    graph: Graph,
    targets: Sequence[str],
    serving: Serving | None = None,
    held_back: Mapping[str, str] | None = None,
) -> Demands:
    """Collect what consumers demand of a plan: ops that share a format, and ops that must be in one.

    Args:
        graph: from `capture`.
        targets: names of the consumers, such as "vllm-gaudi".
        serving: how the model is served; the defaults if None.
        held_back: ops that stay in the base format for other reasons, {op: reason}.

    Raises:
        InputError: an unknown target, or an op would have to be in two formats at once.
    """
    captured, serving = Captured.of(graph), serving or Serving()
    layouts = {name: get_target(name).lay_out(captured, serving) for name in targets}
    return demands_of(layouts, captured, serving, held_back)


def check_adapters(modules: Collection[str], targets: Collection[str]) -> None:
    """Check that the consumers of files on Gaudi get a model without adapters beside its base layers.

    They merge adapters, or name modules in another way; a script of the user's own may keep them.

    Args:
        modules: names of the model's modules.
        targets: names of the consumers.

    Raises:
        InputError: the model has an adapter of PEFT.
    """
    on_gaudi = [name for name in targets if get_target(name).device == "hpu"]
    if on_gaudi and _ADAPTED in modules:
        message = (
            f"target {on_gaudi[0]} runs no model with an adapter beside its base layers; merge it: "
            "model.merge_adapters: true in a recipe, model = model.merge_and_unload() in Python"
        )
        raise InputError(message)


def modules_of(
    layout: Layout, lowered: Collection[str], ops: Collection[str], *, serving: Serving, target: str
) -> set[str]:
    """Find the modules that a consumer must run in FP8 for a plan.

    These are the modules of the lowered ops, those of an FP8 KV cache, and those that a rule of the consumer
    ties to them.

    Args:
        layout: of the consumer.
        lowered: ops of the plan that leave the base format.
        ops: all ops that the plan decides.
        serving: how the model is served.
        target: name of the consumer, for the message.

    Raises:
        SelectionError: the consumer cannot run this plan; the text says what it ties or keeps.
    """
    faults = [f"{op!r}: {why}" for op, why in layout.unplaced.items() if op in lowered]
    modules = {module for op in lowered for module in layout.places.get(op, ())}
    if serving.kv_cache == FP8:
        modules.update(layout.caches)
    for rule in layout.rules:
        if not modules.isdisjoint(rule.modules):
            modules.update(rule.modules)
    holders: dict[str, list[str]] = defaultdict(list)
    for op in ops:
        for module in layout.places.get(op, ()):
            holders[module].append(op)
    reasons = dict(_reasons(layout))
    for module in sorted(modules):
        base = [op for op in holders.get(module, ()) if op not in lowered]
        if base:
            why = reasons.get(module, f"kv_cache is {serving.kv_cache}")
            faults.append(f"{base[0]!r} stays in the base format, but {module} would run in FP8: {why}")
    faults += legality(layout, modules, serving.kv_cache)
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        message = f"no {target} file was made: {faults[0]}{more}"
        raise SelectionError(message)
    return modules


def legality(layout: Layout, lowered: Collection[str], kv_cache: str | None = None) -> list[str]:
    """List the rules of a consumer that a choice of modules breaks, one line each.

    Args:
        layout: of the consumer.
        lowered: modules in FP8.
        kv_cache: format of the KV cache that the model is served with; not compared if None.
    """
    faults = [f"{module} is in FP8, but {why}" for module, why in layout.kept.items() if module in lowered]
    for rule in layout.rules:
        inside = [module for module in rule.modules if module in lowered]
        present = [m for m in rule.modules if any(m in tree for tree in layout.trees)]
        if inside and len(inside) < len(present):
            outside = next(module for module in present if module not in lowered)
            faults.append(f"{inside[0]} is in FP8 and {outside} is not, but {rule.why}")
    faults += [
        f"{need.module} is in FP8 and {need.needed} is not, but {need.why}"
        for need in layout.needs
        if need.module in lowered and need.needed not in lowered
    ]
    reasons = dict(_reasons(layout))
    for cache in layout.caches if kv_cache is not None else ():
        if (cache in lowered) != (kv_cache == FP8):
            will, why = "would" if cache in lowered else "would not", reasons.get(cache, "")
            faults.append(f"{cache} {will} run in FP8, but kv_cache is {kv_cache}{why and f' ({why})'}")
    return faults


def _reasons(layout: Layout) -> Iterator[tuple[str, str]]:
    """Yield why modules go together: (module, reason)."""
    holders: dict[str, int] = defaultdict(int)
    for modules in layout.places.values():
        for module in modules:
            holders[module] += 1
    yield from ((m, f"it is one {split(m)[1]}") for m, count in holders.items() if count > 1)
    for rule in layout.rules:
        yield from ((module, rule.why) for module in rule.modules)


def _reasons_of(members: Collection[tuple[str, str]], reasons: Mapping[tuple[str, str], str]) -> list[str]:
    return sorted({reasons[member] for member in members if member in reasons})
