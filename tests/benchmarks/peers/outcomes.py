"""What plans come to: measured KL, and how much a plan differs from ours on the same samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from plans import Plans, gained
from subject import Subject
from task import FORMAT, Task

from inc_mp_plugin.core.kl_model import KLModel
from inc_mp_plugin.solver.uncertainty import predict


def outcomes(task: Task, subject: Subject, plans: Mapping[str, Plans]) -> dict[str, dict[str, Any]]:
    """Measure all plans, and compare each with that of kl for the same share of the memory."""
    return {
        name: {share: outcome(task, subject, ops, plans["kl"][share]) for share, ops in of_shares.items()}
        for name, of_shares in plans.items()
    }


def outcome(task: Task, subject: Subject, ops: frozenset[str], others: frozenset[str]) -> dict[str, Any]:
    """Measure a plan: its KL, and its ratio to the KL of another one, with the ratio's standard error.

    Both run the same samples, so the error is that of paired samples.
    """
    samples, base = subject.kl(ops), subject.kl(others)
    ratio = samples.mean() / base.mean()
    stderr = np.std(samples - ratio * base, ddof=1) / base.mean() / len(base) ** 0.5
    return {
        "kl": float(samples.mean()),
        "over_kl": float(ratio),
        "stderr": float(stderr),
        "gained": gained(task, ops),
        "ops": len(ops),
    }


def meaning(subject: Subject, kl: KLModel, plan: frozenset[str]) -> dict[str, Any]:
    """Compare the predicted KL of a plan, with its interval for held-out samples, with the measured KL."""
    samples = subject.kl(plan)
    predicted, interval = predict(kl, dict.fromkeys(plan, FORMAT), "fp32", measured=len(samples))
    return {"predicted": predicted, "interval": interval, "measured": float(samples.mean())}
