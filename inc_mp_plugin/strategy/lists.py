"""A model in the hands of INC: what its lists let in, and what a plan adds to its block list."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from inc_mp_plugin.core.demands import Serving
from inc_mp_plugin.core.errors import InputError, SelectionError
from inc_mp_plugin.core.graph import QUANTIZABLE
from inc_mp_plugin.core.literals import KVCache
from inc_mp_plugin.core.plan import Plan
from inc_mp_plugin.inc.patterns import compress
from inc_mp_plugin.inc.selection import selected
from inc_mp_plugin.model.modules import class_names
from inc_mp_plugin.strategy.choices import target_here
from inc_mp_plugin.strategy.settings import Settings
from inc_mp_plugin.targets.layout import Captured, Layout
from inc_mp_plugin.targets.rules import modules_of
from inc_mp_plugin.targets.target import Target


@dataclass(frozen=True)
class LiveModel:
    """A model, its modules {name: class}, those that the user's lists let INC quantize, and its consumer."""

    model: nn.Module
    modules: Mapping[str, str]
    candidates: tuple[str, ...]
    target: Target
    serving: Serving

    @staticmethod
    def of(model: nn.Module, inc: Mapping[str, Any], settings: Settings) -> LiveModel:
        """Describe what INC would do with a model on this machine.

        On a Gaudi the model is optimum-habana's. Its KV cache is in FP8 if the settings say so. If they say
        nothing, it is where the lists let it be, unless plans are to be verified: no such cache can be.

        Args:
            model: with its own modules.
            inc: INC's keys, with the user's lists.
            settings: our keys, of which `kv_cache`, `attention`, `reuse_cache` and `verify` count here.

        Raises:
            InputError: the lists let in a part of the KV cache, or none of one that is to be in FP8.
        """
        target = target_here()
        modules = class_names(model)
        candidates = tuple(selected(modules, inc, "cpu" if target.device == "cpu" else "hpu"))
        caches = {name for name, kind in modules.items() if kind == "KVCache"}
        inside = caches.intersection(candidates)
        if inside and inside != caches:
            message = (
                f"the lists let {min(inside)} into FP8 and leave {min(caches - inside)} out; allow the whole "
                "KV cache or none of it"
            )
            raise InputError(message)
        if settings.kv_cache == "fp8" and target.device == "hpu" and caches and not inside:
            message = f"kv_cache is fp8, but your lists keep {min(caches)} out; let the KV cache in"
            raise InputError(message)
        cache: KVCache = settings.kv_cache or ("fp8" if inside and not settings.verify else "bf16")
        serving = Serving(cache, settings.attention, settings.reuse_cache)
        return LiveModel(model, modules, candidates, target, serving)

    def blocked(self, plan: Plan) -> list[str]:
        """List patterns of the modules that the lists let in and a plan leaves out of FP8.

        Modules of which plans say nothing (softmax) stay as the user's lists have them. A module that INC
        could swap but calibration never ran is blocked, for it would raise at its first call.

        Raises:
            SelectionError: the plan needs a module that the lists keep out.
        """
        ops = tuple(plan.formats)
        layout = self.target.lay_out(Captured(ops, self.modules), self.serving)
        planned = modules_of(layout, plan.quantized, ops, serving=self.serving, target=self.target.name)
        missing = sorted(planned.difference(self.candidates))
        if missing:
            message = (
                f"the plan needs {missing[0]} in FP8, which your lists keep out; allow or block it whole"
            )
            raise SelectionError(message)
        decided = _decided(layout)
        return compress(
            name
            for name in self.candidates
            if name not in planned and (name in decided or self.modules[name] in QUANTIZABLE)
        )


def _decided(layout: Layout) -> set[str]:
    """Return the modules of a consumer that plans decide about."""
    together = [*layout.places.values(), *(rule.modules for rule in layout.rules), layout.caches]
    return {*layout.kept, *layout.resting, *(module for modules in together for module in modules)}
