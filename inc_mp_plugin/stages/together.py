"""Losses and KL divergences of many plans, side by side and batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from inc_mp_plugin.model.divergence import Rows
from inc_mp_plugin.runtime.pace import Work, counted
from inc_mp_plugin.runtime.progress import steps
from inc_mp_plugin.stages.comparison import Comparison, Part, whole

if TYPE_CHECKING:
    from inc_mp_plugin.core.divergence import Divergence
    from inc_mp_plugin.core.sensitivity import FloatArray
    from inc_mp_plugin.runtime.store import Partial
    from inc_mp_plugin.sensitivity.plan_runs import PlanRuns


class Together:
    """Measurement of many plans, as many side by side as memory allows; an interrupt loses one batch."""

    def __init__(self, comparison: Comparison, runs: PlanRuns, partial: Partial) -> None:
        """Take up what an interrupt has left.

        Args:
            comparison: with the base model, on the held-out batches.
            runs: of the same model.
            partial: where the parts of a plan are kept until all batches have theirs.
        """
        self._comparison, self._runs, self._partial = comparison, runs, partial
        self._arrays: dict[str, Any] = partial.load()

    def measured(
        self, plans: Mapping[str, Mapping[str, str]], description: str, shorter: str
    ) -> Iterator[tuple[str, FloatArray, Divergence | None]]:
        """Measure plans, and show the progress.

        Args:
            plans: formats of the ops that are lowered, by a key.
            description: name of the work.
            shorter: advice to the user on making the work shorter.

        Yields:
            The key of each plan, with its losses and divergence as `Comparison.of` gives them.
        """
        keys, batches = list(plans), range(self._comparison.batches)
        size = self._comparison.at_once(self._runs)
        groups = [keys[start : start + size] for start in range(0, len(keys), size)]
        due = [[plans[key] for key in self._missing(group, n)] for group in groups for n in batches]
        title = f"{description}, {counted(sum(map(bool, plans.values())), 'plan')}"
        with steps(Work(title, sum(map(self._runs.steps, due)), noun="run", shorter=shorter)) as advance:
            for group in groups:
                for number in batches:
                    missing = self._missing(group, number)
                    given = [plans[key] for key in missing]
                    if given:
                        parts = self._comparison.of_batch(self._runs, number, given, advance)
                        self._keep(number, dict(zip(missing, parts, strict=True)))
                for key in group:
                    yield key, *whole([self._taken(key, number) for number in batches])
        self._partial.remove()

    def _missing(self, keys: Sequence[str], number: int) -> list[str]:
        """List the plans whose part of a batch is not there."""
        return [key for key in keys if f"{key} {number} losses" not in self._arrays]

    def _keep(self, number: int, parts: Mapping[str, Part]) -> None:
        """Keep the parts of a batch."""
        for key, part in parts.items():
            self._arrays[f"{key} {number} losses"] = part.losses
            if part.rows is not None:
                self._arrays[f"{key} {number} sums"] = part.rows.sums
                self._arrays[f"{key} {number} kl"] = part.rows.kl
        self._partial.save(self._arrays)

    def _taken(self, key: str, number: int) -> Part:
        """Take a part out of those that are kept."""
        names = (f"{key} {number} {name}" for name in ("losses", "sums", "kl"))
        losses, sums, kl = (self._arrays.pop(name, None) for name in names)
        return Part(losses, None if sums is None else Rows(sums, kl))
