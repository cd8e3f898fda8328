"""Task scores of plans, through lm-eval, with the scales perturbed before quantization."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from inc_mp_plugin.evaluate.tasks import evaluate_tasks, load_tasks
from inc_mp_plugin.model.loading import load_tokenizer
from inc_mp_plugin.runtime.store import Partial, fingerprint

if TYPE_CHECKING:
    from pathlib import Path

    from inc_mp_plugin.pipeline.folder import Run

SPREAD = 0.1  # of the factors on the scales


@dataclass(frozen=True, slots=True)
class Tasks:
    """The tasks that accuracy is measured on; see `evaluate.tasks`.

    `include_path` is a folder with task files of the user's own; `limit` is the number of documents per task.
    """

    names: tuple[str, ...]
    include_path: Path | None = None
    limit: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Describe the tasks in an artefact."""
        folder = None if self.include_path is None else str(self.include_path)
        return {"tasks": list(self.names), "include_path": folder, "limit": self.limit}


class Examiner:
    """Scores plans on tasks, each plan once: its scores are kept beside the artefacts."""

    def __init__(self, run: Run, tasks: Tasks) -> None:
        """Load the tasks; the model is converted when the first score is asked for.

        Raises:
            InputError: as `evaluate.tasks.load_tasks`.
        """
        self._run, self._limit = run, tasks.limit
        self._tasks = load_tasks(tasks.names, include_path=tasks.include_path)
        # str(None), as the key of stored scores has it.
        settings = {**tasks.to_json(), "include_path": str(tasks.include_path)}
        key = fingerprint({**run.meter.depends_on, **settings})
        self._stored = Partial(run.folder / "scores.npz", key)
        self._scores = self._stored.load()

    @cached_property
    def _tokenizer(self) -> Any:
        model = self._run.recipe.model
        name = model.tokenizer or model.name_or_path
        return load_tokenizer(name, trust_remote_code=model.trust_remote_code)

    def scores(self, ops: Collection[str], seed: int | None) -> dict[str, float]:
        """Score tasks with these ops in the lower format, {"task/metric": value}.

        Args:
            ops: names.
            seed: of the perturbed scales; None leaves INC's own.
        """
        key = fingerprint({"ops": sorted(ops), "seed": seed if ops else None})
        if key not in self._scores:
            scores = self._evaluate(ops, seed)
            self._scores["metrics"] = np.array(sorted(scores))
            self._scores[key] = np.array([scores[name] for name in sorted(scores)])
            self._stored.save(self._scores)
        return dict(zip(self._scores["metrics"].tolist(), self._scores[key].tolist(), strict=True))

    def _evaluate(self, ops: Collection[str], seed: int | None) -> dict[str, float]:
        from inc_mp_plugin.inc.perturb import perturbed

        switch, batch_size = self._run.meter.judge.switch, self._run.recipe.calibration.batch_size
        with nullcontext() if seed is None or not ops else perturbed(switch, seed, SPREAD):
            switch.select(dict.fromkeys(ops, self._run.meter.format))
            by_task = evaluate_tasks(
                switch.model, self._tokenizer, self._tasks, limit=self._limit, batch_size=batch_size
            )
        return {f"{task}/{metric}": value for task, row in by_task.items() for metric, value in row.items()}
