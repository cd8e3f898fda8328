"""Task scores of plans, through lm-eval, with the scales perturbed before quantization."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from inc_mp_plugin.evaluate.answers import Answers, change_of
from inc_mp_plugin.evaluate.tasks import answers_to, evaluate_tasks, load_tasks
from inc_mp_plugin.experiments.measured import measured_experiment, say_time
from inc_mp_plugin.experiments.settings import Tasks
from inc_mp_plugin.model.loading import load_tokenizer
from inc_mp_plugin.runtime.pace import counted, duration
from inc_mp_plugin.runtime.progress import say, tracked
from inc_mp_plugin.runtime.store import Partial, fingerprint

if TYPE_CHECKING:
    from inc_mp_plugin.core.experiment import Experiment, Trial
    from inc_mp_plugin.core.gains import Gains
    from inc_mp_plugin.pipeline.folder import Run

SPREAD = 0.1  # of the factors on the scales
_SHORTER = "fewer --points or --draws, --limit or --quick take less"
_METRICS, _SECONDS = "metrics", "seconds"


@dataclass(frozen=True, slots=True)
class Examined:
    """Scores of a plan, {"task/metric": value}, and its answers, {task: answers}."""

    scores: Mapping[str, float]
    answers: Mapping[str, Answers]


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
        self._stored = Partial(run.folder / "task_answers.npz", key)
        self._arrays = self._stored.load()

    @cached_property
    def _tokenizer(self) -> Any:
        model = self._run.recipe.model
        name = model.tokenizer or model.name_or_path
        return load_tokenizer(name, trust_remote_code=model.trust_remote_code)

    @property
    def base(self) -> Examined:
        """Scores and answers of the model in its base format."""
        return self.of((), None)

    @property
    def base_s(self) -> float:
        """The time that the model in its base format takes for all tasks, in s."""
        self.of((), None)
        return float(self._arrays[_SECONDS])

    def left(self, trials: Sequence[Trial]) -> int:
        """Count the trials that are not scored yet, equal ones once."""
        return len({_key(trial.quantized, trial.seed) for trial in trials} - self._arrays.keys())

    def of(self, ops: Collection[str], seed: int | None) -> Examined:
        """Score tasks with these ops in the lower format.

        Args:
            ops: names.
            seed: of the perturbed scales; None leaves INC's own.
        """
        key = _key(ops, seed)
        if key not in self._arrays:
            self._evaluate(key, ops, seed)
        values = zip(self._arrays[_METRICS].tolist(), self._arrays[key].tolist(), strict=True)
        start = f"{key} "
        answers = {
            name.removeprefix(start): Answers(*array)
            for name, array in self._arrays.items()
            if name.startswith(start)
        }
        return Examined(dict(values), answers)

    def _evaluate(self, key: str, ops: Collection[str], seed: int | None) -> None:
        switch, batch_size = self._run.meter.judge.switch, self._run.recipe.calibration.batch_size
        start_s = time.perf_counter()
        with nullcontext() if seed is None or not ops else self._perturbed(seed):
            switch.select(dict.fromkeys(ops, self._run.meter.format))
            by_task = evaluate_tasks(
                switch.model, self._tokenizer, self._tasks, limit=self._limit, batch_size=batch_size
            )
        scores = {f"{task}/{metric}": value for task, row in by_task.items() for metric, value in row.items()}
        if not ops:
            self._arrays[_SECONDS] = np.array(time.perf_counter() - start_s)
        self._arrays[_METRICS] = np.array(sorted(scores))
        self._arrays[key] = np.array([scores[name] for name in sorted(scores)])
        for name, answers in answers_to(self._tasks).items():
            self._arrays[f"{key} {name}"] = answers.to_array()
        self._stored.save(self._arrays)

    def _perturbed(self, seed: int) -> Any:
        from inc_mp_plugin.inc.perturb import perturbed

        return perturbed(self._run.meter.judge.switch, seed, SPREAD)


def measured_accuracy(run: Run, gains: Gains, trials: Sequence[Trial], tasks: Tasks) -> Experiment:
    """Measure trials, then score them on tasks; the time that it takes is said first.

    Args:
        run: of the folder.
        gains: that the plans were made for.
        trials: the plans, with the seeds of their scales.
        tasks: of lm-eval.
    """
    examiner = Examiner(run, tasks)
    base, left = examiner.base, examiner.left(trials)
    if left:
        lasts = duration(left * examiner.base_s)
        say(f"accuracy: {counted(left, 'run')} of {', '.join(tasks.names)}, about {lasts} ({_SHORTER})")
    if run.meter.missing([trial.quantized for trial in trials]):
        say_time(run, "accuracy, KL", trials)
    experiment = measured_experiment(run, gains, "accuracy", trials)
    with tracked(experiment.trials, "Accuracy", noun="plan", shorter=_SHORTER) as plans:
        scored = [_scored(examiner, trial, base, run.meter.verify_confidence) for trial in plans]
    return replace(experiment, trials=tuple(scored), base_scores=base.scores)


def _scored(examiner: Examiner, trial: Trial, base: Examined, level: float) -> Trial:
    examined = examiner.of(trial.quantized, trial.seed)
    changes = {
        task: change_of(answers, base.answers[task], level) for task, answers in examined.answers.items()
    }
    return replace(trial, scores=examined.scores, answers=changes)


def _key(ops: Collection[str], seed: int | None) -> str:
    """Name the scores of a choice of ops."""
    return fingerprint({"ops": sorted(ops), "seed": seed if ops else None})
