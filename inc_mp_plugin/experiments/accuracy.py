"""Task scores of plans, through lm-eval, with the scales perturbed before quantization."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import nullcontext
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from inc_mp_plugin.evaluate.tasks import evaluate_tasks, load_tasks
from inc_mp_plugin.model.loading import load_tokenizer
from inc_mp_plugin.runtime.store import Partial, fingerprint

if TYPE_CHECKING:
    from pathlib import Path

    from inc_mp_plugin.pipeline.recipe import Recipe
    from inc_mp_plugin.stages.loss_meter import LossMeter

SPREAD = 0.1  # of the factors on the scales


class Examiner:
    """Scores plans on tasks, each once: what was scored is kept beside the artefacts."""

    def __init__(
        self,
        recipe: Recipe,
        meter: LossMeter,
        names: Collection[str],
        include_path: Path | None,
        limit: int | None,
        out: Path,
    ) -> None:
        """Load the tasks; the model is converted when the first score is asked for.

        Args:
            recipe: names model and tokenizer.
            meter: has the converted model.
            names: of tasks.
            include_path: a folder with task files of one's own.
            limit: documents per task.
            out: folder of the artefacts.

        Raises:
            InputError: as `evaluate.tasks.load_tasks`.
        """
        self._tasks = load_tasks(list(names), include_path=include_path)
        self._recipe, self._meter, self._limit = recipe, meter, limit
        settings = {"tasks": list(names), "include_path": str(include_path), "limit": limit}
        self._kept = Partial(out / "scores.npz", fingerprint({**meter.depends_on, **settings}))
        self._known = self._kept.load()

    @cached_property
    def _tokenizer(self) -> Any:
        model = self._recipe.model
        name = model.tokenizer or model.name_or_path
        return load_tokenizer(name, trust_remote_code=model.trust_remote_code)

    def scores(self, ops: Collection[str], seed: int | None) -> dict[str, float]:
        """Score tasks with these ops in the lower format, {"task/metric": value}.

        Args:
            ops: names.
            seed: of the perturbed scales; None leaves INC's own.
        """
        key = fingerprint({"ops": sorted(ops), "seed": seed if ops else None})
        if key not in self._known:
            found = self._evaluate(ops, seed)
            self._known["metrics"] = np.array(sorted(found))
            self._known[key] = np.array([found[name] for name in sorted(found)])
            self._kept.save(self._known)
        return dict(zip(self._known["metrics"].tolist(), self._known[key].tolist(), strict=True))

    def _evaluate(self, ops: Collection[str], seed: int | None) -> dict[str, float]:
        from inc_mp_plugin.inc.perturb import perturbed

        switch = self._meter.switch
        with nullcontext() if seed is None or not ops else perturbed(switch, seed, SPREAD):
            switch.select(dict.fromkeys(ops, self._meter.format))
            found = evaluate_tasks(
                switch.model,
                self._tokenizer,
                self._tasks,
                limit=self._limit,
                batch_size=self._recipe.calibration.batch_size,
            )
        return _flat(found)


def _flat(found: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    return {f"{task}/{metric}": value for task, row in found.items() for metric, value in row.items()}
