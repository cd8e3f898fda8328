"""Sizes of the experiments: gains to compare at, plans, samples and documents, whole or quick."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.core.results import LEAST_SAMPLES

# Fractions of the largest gain at which strategies are compared, and of everything's NRMSE.
GAIN_LEVELS = (0.2, 0.35, 0.5, 0.65, 0.8, 0.9)
NRMSE_LEVELS = (0.15, 0.3, 0.45, 0.6, 0.75, 0.9)
_LEVELS = {
    "prediction": NRMSE_LEVELS,
    "curve": GAIN_LEVELS,
    "methods": GAIN_LEVELS,
    "accuracy": GAIN_LEVELS,
}


@dataclass(frozen=True, slots=True)
class _Size:
    """Numbers of draws and of points, None for all points."""

    draws: int
    points: int | None = None


_WHOLE = {
    "choices": _Size(3),
    "prediction": _Size(60),
    "curve": _Size(3),
    "methods": _Size(3),
    "accuracy": _Size(2, 3),
}
_QUICK = {
    "choices": _Size(3),
    "prediction": _Size(20, 3),
    "curve": _Size(3, 3),
    "methods": _Size(3, 3),
    "accuracy": _Size(1, 2),
}
_ALPS_SAMPLES, _QUICK_ALPS_SAMPLES = 16, 2
_QUICK_DOCUMENTS = 60


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


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of an experiment.

    `objective` is the plan's if None; `draws` counts the random draws, the random plans of `prediction`, or
    the seeds of perturbed scales; `tasks` are those of `accuracy`. Fewer `points`, the gains or thresholds to
    compare at, and fewer held-out `samples` make the experiment shorter. None stands for the experiment's own
    numbers, which `quick` makes less, and for all samples of the recipe. `alps_samples` are calibration
    samples. `allow_code` lets the file of the recipe's own loss run.
    """

    objective: str | None = None
    draws: int | None = None
    tasks: Tasks = Tasks(())
    points: int | None = None
    samples: int | None = None
    alps_samples: int | None = None
    quick: bool = False
    allow_code: bool = False

    def check(self, name: str) -> None:
        """Refuse settings that an experiment cannot have.

        Raises:
            InputError: a number is out of range.
        """
        most = len(_LEVELS.get(name, GAIN_LEVELS))
        for key in ("draws", "points", "samples"):
            value = getattr(self, key)
            if value is not None and value < 1:
                message = f"{key} is {value}; give at least 1"
                raise InputError(message)
        if self.points is not None and self.points > most:
            message = f"points is {self.points}; give at most {most} for {name}"
            raise InputError(message)

    def sized(self, name: str, heldout: int | None) -> Settings:
        """Add the numbers that are not given.

        Args:
            name: of the experiment.
            heldout: number of held-out samples of the recipe; None if it has none.

        Example:
            >>> quick = Settings(quick=True).sized("prediction", 32)
            >>> quick.draws, quick.points, quick.samples
            (20, 3, 8)
        """
        size = (_QUICK if self.quick else _WHOLE)[name]
        samples, tasks, alps = self.samples, self.tasks, _ALPS_SAMPLES
        if self.quick:
            alps = _QUICK_ALPS_SAMPLES
            if samples is None and heldout is not None and heldout > LEAST_SAMPLES:
                samples = LEAST_SAMPLES
            if tasks.limit is None:
                tasks = replace(tasks, limit=_QUICK_DOCUMENTS)
        return replace(
            self,
            draws=self.draws or size.draws,
            points=self.points or size.points,
            samples=samples,
            tasks=tasks,
            alps_samples=self.alps_samples or alps,
        )


def levels_of(name: str, points: int | None) -> tuple[float, ...]:
    """Return the levels to compare at: all of an experiment, or so many from the middles of equal parts.

    Example:
        >>> levels_of("curve", 3), levels_of("prediction", None)
        ((0.35, 0.65, 0.9), (0.15, 0.3, 0.45, 0.6, 0.75, 0.9))
    """
    levels = _LEVELS[name]
    if points is None:
        return levels
    return tuple(levels[(2 * index + 1) * len(levels) // (2 * points)] for index in range(points))
