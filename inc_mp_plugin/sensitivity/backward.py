"""Backward passes through one batch: from all its logits at once, or from those of some tokens at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.model.distributions import Distributions, check_counted
from inc_mp_plugin.model.hooks import watching
from inc_mp_plugin.model.in_files import empty_in_a_file
from inc_mp_plugin.model.losses import IGNORED_LABEL, next_labels
from inc_mp_plugin.model.token_losses import check_classes, token_losses
from inc_mp_plugin.runtime.lockstep import backward_pass
from inc_mp_plugin.sensitivity.drawn_labels import drawn_losses, labels_at, uniform_numbers

if TYPE_CHECKING:
    from inc_mp_plugin.model.batches import Batch
    from inc_mp_plugin.model.tail import Tail
    from inc_mp_plugin.sensitivity.taps import Taps

    LabelsOf = Callable[[slice, Tensor], Tensor]


class Labels(NamedTuple):
    """Labels to be drawn: for samples of these numbers, by this seed, the draw of this number."""

    numbers: Sequence[int]
    seed: int
    draw: int


class Backward(Protocol):
    """A batch after its forward pass, which is to be differentiated."""

    @property
    def counted(self) -> Tensor:
        """The positions that count, shape (samples, positions)."""

    def loss(self, scale: float, *, keep: bool) -> Tensor:
        """Differentiate the loss of each sample, times a scale; return the losses.

        Args:
            scale: of the gradients.
            keep: another backward pass follows.
        """

    def drawn(self, labels: Labels, scale: float, *, keep: bool) -> Tensor:
        """Differentiate the loss of drawn labels, times a scale; return the losses.

        Args:
            labels: to be drawn.
            scale: of the gradients.
            keep: another backward pass follows.
        """


@dataclass(frozen=True)
class Whole:
    """A batch with its losses, or its distributions, as far as measured; `loss_of` one sample, or of all."""

    losses: Tensor | None
    distributions: Distributions | None
    loss_of: int | None = None

    @property
    def counted(self) -> Tensor:
        """The positions that count, shape (samples, positions)."""
        counted = self._predicted.counted
        return counted if self.loss_of is None else counted[self.loss_of : self.loss_of + 1]

    @property
    def _predicted(self) -> Distributions:
        if self.distributions is None:
            message = "the KL divergence was not to be measured"
            raise InputError(message)
        return self.distributions

    def loss(self, scale: float, *, keep: bool) -> Tensor:
        """Differentiate the loss of each sample; see `Backward`."""
        return self._differentiated(torch.zeros(0) if self.losses is None else self.losses, scale, keep=keep)

    def drawn(self, labels: Labels, scale: float, *, keep: bool) -> Tensor:
        """Differentiate the loss of drawn labels, as `Backward` has it.

        Args:
            labels: to be drawn.
            scale: of the gradients.
            keep: another backward pass follows.
        """
        losses = drawn_losses(self._predicted, labels.numbers, seed=labels.seed, draw=labels.draw)
        return self._differentiated(losses, scale, keep=keep)

    def _differentiated(self, losses: Tensor, scale: float, *, keep: bool) -> Tensor:
        own = losses if self.loss_of is None else losses[self.loss_of : self.loss_of + 1]
        with backward_pass():
            torch.autograd.backward(own, torch.full_like(own, scale), retain_graph=keep)
        return own.detach()


class InParts:
    """A batch of a language model whose logits are computed for some tokens at a time, and dropped.

    First the blocks run. For each part of the tokens, the tail runs on the blocks' output, and is
    differentiated. Then the blocks are. The gradients of logits are gathered for the weight of the head: on a
    CPU in a temporary file, for they are as large as all logits.
    """

    def __init__(self, tail: Tail, taps: Taps, batch: Batch) -> None:
        """Run the blocks.

        Args:
            tail: of the model.
            taps: on all ops but the tail's.
            batch: on the model's device.
        """
        self._tail, self._taps, self._batch = tail, taps, batch
        self._state = tail.state(batch)
        self._labels = next_labels(batch).to(self._state.device)  # type: ignore[arg-type]
        check_classes(self._labels, tail.classes)
        check_counted(self.counted)

    @cached_property
    def counted(self) -> Tensor:
        """The positions that count, shape (samples, positions)."""
        return self._labels != IGNORED_LABEL

    def loss(self, scale: float, *, keep: bool) -> Tensor:
        """Differentiate the mean loss of each sample's tokens; see `Backward`."""
        counts = self.counted.sum(dim=1)
        gradient = scale / counts.to(torch.float32)
        losses = self._differentiated(lambda part, _: self._labels[:, part], gradient, keep=keep)
        return losses / counts

    def drawn(self, labels: Labels, scale: float, *, keep: bool) -> Tensor:
        """Differentiate the loss of drawn labels, as `Backward` has it.

        Args:
            labels: to be drawn.
            scale: of the gradients.
            keep: another backward pass follows.
        """
        uniform = uniform_numbers(self.counted, labels.numbers, seed=labels.seed, draw=labels.draw)

        def labels_of(part: slice, logits: Tensor) -> Tensor:
            return labels_at(Distributions(logits.detach(), self.counted[:, part]), uniform[:, part])

        return self._differentiated(labels_of, torch.full(uniform.shape[:1], scale), keep=keep)

    def _differentiated(self, labels_of: LabelsOf, gradient: Tensor, *, keep: bool) -> Tensor:
        """Differentiate the tail part by part, then the blocks; return the sum of each sample's losses."""
        state = self._state
        of_state, losses = torch.empty_like(state), torch.empty(state.shape[:2], device=state.device)
        gathered = _Gathered(state.shape[:2])
        for part in self._tail.parts(self._batch):
            piece = state[:, part].detach().requires_grad_()
            with watching({self._tail.op: self._tail.head}, gathered.before(part), gathered.after(part)):
                logits = self._tail.logits(self._batch, piece)
            own = token_losses(logits, labels_of(part, logits), IGNORED_LABEL)
            torch.autograd.backward(own, gradient.to(own.device)[:, None].expand_as(own))
            if piece.grad is not None:
                of_state[:, part] = piece.grad
            losses[:, part] = own.detach()
        self._taps.add(self._tail.op, gathered.value, gathered.of_value, gathered.of_output)
        torch.autograd.backward(state, of_state, retain_graph=keep)
        return losses.sum(dim=1)


class _Gathered:
    """The input of an op, its gradient and that of the output, of all tokens."""

    def __init__(self, shape: torch.Size) -> None:
        """Prepare for so many samples and tokens."""
        self._shape = shape
        self.value, self.of_value, self.of_output = (torch.empty(0) for _ in range(3))

    def before(self, part: slice) -> Callable[[str, Any, Any], Any]:
        """Return a hook that keeps the input of a part of the tokens, and its gradient."""

        def keep(name: str, args: Any, kwargs: Any) -> Any:
            del name
            value, *others = args
            if not self.value.numel():
                shape = (*self._shape, value.shape[-1])
                self.value, self.of_value = value.new_empty(shape), value.new_empty(shape)
            self.value[:, part] = value.detach()
            branch = value.view_as(value)
            hook = partial(self._keep, self.of_value, part)
            branch.register_hook(hook)
            return (branch, *others), kwargs

        return keep

    def after(self, part: slice) -> Callable[[str, Any, Any, Any], Any]:
        """Return a hook that keeps the gradient of the output of a part of the tokens."""

        def keep(name: str, args: Any, kwargs: Any, output: Tensor) -> None:
            del name, args, kwargs
            if not self.of_output.numel():
                self.of_output = empty_in_a_file((*self._shape, output.shape[-1]), output)
            hook = partial(self._keep, self.of_output, part)
            output.register_hook(hook)  # type: ignore[no-untyped-call]

        return keep

    def _keep(self, whole: Tensor, part: slice, gradient: Tensor) -> None:
        whole[:, part] = gradient
