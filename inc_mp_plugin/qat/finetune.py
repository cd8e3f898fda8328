"""Fine-tuning: stochastic gradient descent on a copy of a model, rounded ops and their steps included."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from inc_mp_plugin.core.errors import InputError, NonFiniteError
from inc_mp_plugin.model.losses import sample_losses
from inc_mp_plugin.qat.layers import rounded_ops
from inc_mp_plugin.qat.lsq import Quantizer
from inc_mp_plugin.runtime.progress import tracked

if TYPE_CHECKING:
    from inc_mp_plugin.model.batches import Batch
    from inc_mp_plugin.model.losses import LossFunction


@dataclass(frozen=True, slots=True)
class FineTuning:
    """Settings of the training of a model.

    The learning rate falls from `learning_rate` along half a cosine to 0 after the last update. The weight
    decay applies to weights alone: neither to parameters of one number per channel, nor to steps. `seed` is
    the seed of all that is random in the model, such as dropout.
    """

    learning_rate: float
    momentum: float = 0.9
    weight_decay: float = 1e-4
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse settings that no training can be done with."""
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            message = f"learning_rate is {self.learning_rate}; it must be a number above 0, such as 0.01"
            raise InputError(message)
        if not 0 <= self.momentum < 1 or not 0 <= self.weight_decay < math.inf:
            message = (
                f"momentum is {self.momentum} and weight_decay {self.weight_decay}; the first must be at "
                "least 0 and below 1, the second at least 0"
            )
            raise InputError(message)


@dataclass(frozen=True, slots=True)
class FineTuned:
    """A trained model in evaluation mode, the mean loss of every batch before its update, and the time."""

    model: nn.Module
    losses: tuple[float, ...]
    seconds: float


def finetune(
    model: nn.Module,
    batches: Sequence[Batch],
    loss_fn: LossFunction | None,
    settings: FineTuning,
    *,
    description: str = "",
) -> FineTuned:
    """Train a copy of a model, one update per batch, in their order.

    An update changes the step of a rounded op by a factor of 2 at the most, so that steps stay above 0.

    The caller decides on the order of the batches and on their augmentation. The same batches and settings
    give the same model, bit for bit on one thread.

    Args:
        model: a model, which leaves as it came. The copy is trained in training mode, so that batch norms
            take part.
        batches: tensors, tuples or dicts whose first axis counts samples.
        loss_fn: `loss_fn(model, batch)` returns one loss per sample, whose mean is descended; the
            language-model loss if None.
        settings: see `FineTuning`.
        description: name under which updates are logged, and shown by the command line; if empty, neither.

    Raises:
        InputError: no batch, or a loss that is not one number per sample.
        NonFiniteError: a loss or a step that is NaN or infinite.
    """
    if not batches:
        message = "no batch was given to train on; at least one is needed"
        raise InputError(message)
    start, trained = time.perf_counter(), copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(
        _parameter_groups(trained, settings), settings.learning_rate, settings.momentum
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches))
    losses, steps = [], _steps(trained)
    progress: AbstractContextManager[Iterable[Batch]] = nullcontext(batches)
    if description:
        progress = tracked(batches, description)
    with torch.random.fork_rng(), progress as updates:
        torch.manual_seed(settings.seed)
        for number, batch in enumerate(updates, start=1):
            loss = sample_losses(trained, batch, loss_fn).mean()
            losses.append(_checked(loss, number, len(batches), settings))
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            before = [step.detach().clone() for step in steps.values()]
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                _limit_steps(steps, before, number)
    return FineTuned(trained.eval(), tuple(losses), time.perf_counter() - start)


def _parameter_groups(model: nn.Module, settings: FineTuning) -> list[dict[str, object]]:
    steps = {id(m.step) for m in model.modules() if isinstance(m, Quantizer)}
    parameters = [p for p in model.parameters() if p.requires_grad]
    weights = [p for p in parameters if p.dim() > 1 and id(p) not in steps]
    others = [p for p in parameters if p.dim() <= 1 or id(p) in steps]
    groups = [(weights, settings.weight_decay), (others, 0.0)]
    return [{"params": params, "weight_decay": decay} for params, decay in groups if params]


def _checked(loss: Tensor, number: int, updates: int, settings: FineTuning) -> float:
    value = float(loss.detach())
    if not math.isfinite(value):
        message = (
            f"the loss is {value} in update {number} of {updates}: training has diverged at a learning rate "
            f"of {settings.learning_rate:g}; give a smaller one"
        )
        raise NonFiniteError(message)
    return value


def _steps(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the steps of all rounded ops, by "the input of op 'a'" and "the weight of op 'a'"."""
    return {
        f"the {factor} of op {name!r}": quantizer.step
        for name, op in rounded_ops(model).items()
        for factor, quantizer in (("input", op.input_quantizer), ("weight", op.weight_quantizer))
    }


def _limit_steps(steps: Mapping[str, Tensor], before: Sequence[Tensor], number: int) -> None:
    """Let an update halve or double a step at the most: no step gets to 0, where nothing is rounded any more.

    Only ops that have just been lowered have such large gradients, for a few updates.
    """
    for (name, step), old in zip(steps.items(), before, strict=True):
        step.copy_(torch.minimum(torch.maximum(step, old / 2), old * 2))
        if not bool(step.isfinite().all()):
            message = (
                f"a step of {name} is {float(step.max())} after {number} updates: its gradient is not finite"
            )
            raise NonFiniteError(message)
