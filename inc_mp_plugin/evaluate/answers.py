"""Answers of a model to the documents of a task, and how they differ from those of another model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from inc_mp_plugin.core.experiment import AnswerChange
from inc_mp_plugin.evaluate.interval import mean_interval

if TYPE_CHECKING:
    from inc_mp_plugin.core.sensitivity import FloatArray


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers to the documents of a task, each an array of shape (documents,).

    `choice` is the number of the answer of most log-probability; of a document with a single one, 1 if each
    of its tokens is the most likely one, else 0. `right` is 1.0 where that is right, else 0.0. `margin` is
    the log-probability of the right answer minus that of the best wrong one, or the former alone where there
    is no wrong one, in nats.
    """

    choice: FloatArray
    right: FloatArray
    margin: FloatArray

    def to_array(self) -> FloatArray:
        """Join them, shape (3, documents)."""
        return np.stack([self.choice, self.right, self.margin])


def among(log_probabilities: Sequence[Sequence[float]], right: Sequence[int]) -> Answers:
    """Make the answers to documents with several answers each, of which one is right.

    Args:
        log_probabilities: of every answer of each document, in nats.
        right: number of the right answer of each document.

    Example:
        >>> answers = among([[-1.0, -3.0, -2.0], [-1.0, -3.0]], [0, 1])
        >>> answers.choice.tolist(), answers.right.tolist(), answers.margin.tolist()
        ([0.0, 0.0], [1.0, 0.0], [1.0, -2.0])
    """
    choice = [float(np.argmax(row)) for row in log_probabilities]
    wrong = [max((*row[:n], *row[n + 1 :])) for row, n in zip(log_probabilities, right, strict=True)]
    margin = [row[n] - best for row, n, best in zip(log_probabilities, right, wrong, strict=True)]
    hits = [float(picked == n) for picked, n in zip(choice, right, strict=True)]
    return Answers(*map(np.array, (choice, hits, margin)))


def change_of(answers: Answers, base: Answers, level: float) -> AnswerChange:
    """Compare answers with those of the base model, document by document.

    Args:
        answers: of a plan.
        base: of the base model, to the same documents.
        level: of the intervals.
    """
    accuracy, margin = answers.right - base.right, answers.margin - base.margin
    return AnswerChange(
        documents=len(margin),
        flips=float((answers.choice != base.choice).mean()),
        accuracy=float(accuracy.mean()),
        accuracy_interval=mean_interval(accuracy, level),
        margin=float(margin.mean()),
        margin_interval=mean_interval(margin, level),
        margin_rms=float((margin**2).mean() ** 0.5),
    )
