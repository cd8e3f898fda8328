"""The sensitivities of one batch: a forward pass, and a backward pass for each yardstick and draw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from inc_mp_plugin.core.blocks import repeated_blocks
from inc_mp_plugin.core.errors import InputError, NonFiniteError
from inc_mp_plugin.core.estimate import Estimate
from inc_mp_plugin.core.graph import Graph
from inc_mp_plugin.core.literals import Yardstick
from inc_mp_plugin.model.batches import batch_size, call, placed, sample_lengths
from inc_mp_plugin.model.distributions import Distributions, distributions_in
from inc_mp_plugin.model.hooks import recorded
from inc_mp_plugin.model.losses import sample_losses
from inc_mp_plugin.model.modes import Kernels
from inc_mp_plugin.sensitivity.backward import Backward, InParts, Labels, Whole
from inc_mp_plugin.sensitivity.drawn_labels import drawn_losses
from inc_mp_plugin.sensitivity.maxabs import raise_to
from inc_mp_plugin.sensitivity.nonfinite import where_not_finite
from inc_mp_plugin.sensitivity.rows import Rows
from inc_mp_plugin.sensitivity.tap_rows import to_rows
from inc_mp_plugin.sensitivity.tapping import Tapping
from inc_mp_plugin.sensitivity.taps import Taps

if TYPE_CHECKING:
    from inc_mp_plugin.model.batches import Batch
    from inc_mp_plugin.model.losses import LossFunction
    from inc_mp_plugin.model.tail import Tail
    from inc_mp_plugin.sensitivity.maxabs import MaxAbs
    from inc_mp_plugin.sensitivity.rounded import Errors

# Gradients of FP16 models underflow below 6e-8; they are computed scaled up by this power of two.
_SCALE = {torch.float16: 2.0**12}

Measured = dict[Yardstick, Rows]
Begun = Callable[[], Measured]


@dataclass(frozen=True)
class Pass:
    """Settings of the passes through a model.

    `loss` says that the sensitivities of the loss are measured, `kl` how those of the KL divergence are, if
    at all. `rounding` gives rounding errors q in some formats, or their root mean square; without, none is
    measured. With `low`, repeated blocks keep their inputs alone, and run once more for their gradients.
    `held` says that the rounding errors' scales are not known before all batches have run: it is raised to
    the maxabs of each batch, and backward passes wait. With a `tail`, logits are computed for some tokens
    at a time. `in_fp32` computes matrix products of BF16 and FP16 in FP32.
    """

    model: nn.Module
    graph: Graph
    loss_fn: LossFunction | None = None
    rounding: Errors | None = None
    loss: bool = True
    kl: Estimate | None = None
    low: bool = False
    held: MaxAbs | None = None
    tail: Tail | None = None
    in_fp32: bool = False

    @property
    def kernels(self) -> Kernels:
        """Kernels of the matrix products."""
        return Kernels(by_key_heads=self.low, in_fp32=self.in_fp32)

    @cached_property
    def blocks(self) -> tuple[str, ...]:
        """Names of the blocks that run once more; none where all activations are kept."""
        return repeated_blocks(self.graph) if self.low else ()

    def forward(self, batch: Batch) -> tuple[Tensor | None, Distributions | None]:
        """Run the model on a batch: the loss of each sample, and the distributions, as far as measured.

        Raises:
            InputError: a loss is not one number per sample, or there is nothing to differentiate.
        """
        losses, distributions = None, None
        with recorded(self.model) as outputs:
            if self.loss:
                losses = sample_losses(self.model, batch, self.loss_fn)
                _check_gradient(losses, "the loss")
            else:
                call(self.model, placed(self.model, batch))
        if self.kl is not None:
            if not outputs:
                message = (
                    "loss_fn does not run the model itself, so that its distributions are not known; call "
                    "the model in it, or give tau instead of kl"
                )
                raise InputError(message)
            distributions = distributions_in(outputs[-1], self.model, placed(self.model, batch))
            _check_gradient(distributions.logits, "the model's output")
        return losses, distributions

    def losses(self, batch: Batch) -> Tensor:
        """Run the model on a batch; return what is differentiated of each sample, shape (samples,)."""
        losses, distributions = self.forward(batch)
        if losses is not None or distributions is None:
            return torch.zeros(0) if losses is None else losses
        return drawn_losses(distributions, range(batch_size(batch)), seed=0, draw=0)

    def begin(
        self, batch: Batch, numbers: Sequence[int], *, loss_of: int | None = None, whole: bool = False
    ) -> Begun:
        """Measure the rows of a batch, by every yardstick; if `held`, run its forward pass alone.

        Args:
            batch: of samples.
            numbers: of its samples, for the labels that are drawn.
            loss_of: one sample whose row alone is measured, over all that the batch holds.
            whole: the KL divergence has one row for all samples together.

        Returns:
            A function that gives the rows; if `held`, it runs the backward passes.

        Raises:
            InputError: a loss is not one number per sample, or has no gradient.
            NonFiniteError: a NaN or an infinity; the text names the op. The function raises it, too.
        """
        size = 1 if loss_of is not None else batch_size(batch)
        kl_size = 1 if whole else size
        tail = self.tail if loss_of is None else None
        tapping = Tapping(
            self.model,
            self.graph,
            size if self.loss else kl_size,
            self.rounding,
            maxabs=None if self.rounding is None or self.held is not None else self.rounding.maxabs or None,
            tokens=sample_lengths(batch),
            together=not self.loss,
            blocks=self.blocks,
            apart=() if tail is None else (tail.op,),
        )
        taps = Taps(tapping)

        def rows(run: Backward) -> Measured:
            measured: Measured = {}
            if self.loss:
                measured["loss"] = self._loss_rows(taps, run)
                taps.restart(kl_size, together=True)
            if self.kl is not None:
                measured["kl"] = self._kl_rows(taps, run, numbers)
            return measured

        with taps:
            run: Backward
            if tail is None:
                run = Whole(*self.forward(batch), loss_of)
            else:
                run = InParts(tail, taps, placed(self.model, batch))
            measured = rows(run) if self.held is None else {}
        if self.held is not None:
            raise_to(self.held, taps.maxabs)
            return lambda: self._finite(rows(run), batch)
        checked = self._finite(measured, batch)
        return lambda: checked

    def _loss_rows(self, taps: Taps, run: Backward) -> Rows:
        scale = self._scale()
        losses = run.loss(scale, keep=self.kl is not None)
        taps.finish()
        every = torch.ones(len(losses))
        return to_rows(taps, losses, (every, every), scale**-2)

    def _kl_rows(self, taps: Taps, run: Backward, numbers: Sequence[int]) -> Rows:
        """Sum half the squares of all draws, for labels of each sample, or of all samples together."""
        estimate = self.kl or Estimate()
        tokens = run.counted.sum(dim=1)
        sizes, scale = torch.ones(len(tokens)), self._scale() / float(tokens.max())
        losses = torch.zeros(len(tokens))
        for draw in range(estimate.draws):
            labels = Labels(numbers, estimate.seed, draw)
            losses = losses + run.drawn(labels, scale, keep=draw + 1 < estimate.draws).cpu() / estimate.draws
            taps.finish()
        parts: list[Tensor] = [losses, tokens, sizes]
        if len(taps.totals.input) == 1:
            parts = [part.double().sum(dim=0, keepdim=True) for part in parts]
        own, tokens, sizes = parts
        return to_rows(taps, own, (tokens, sizes), 0.5 * scale**-2 / estimate.draws)

    def _scale(self) -> float:
        dtype = next((p.dtype for p in self.model.parameters()), torch.float32)
        return _SCALE.get(dtype, 1.0)

    def _finite(self, measured: Measured, batch: Batch) -> Measured:
        """Refuse NaN and infinities.

        Raises:
            NonFiniteError: there is one; the text names the op.
        """
        for rows in measured.values():
            parts = (rows.loss, rows.input, rows.weight, *rows.rounding.values(), *rows.shared.values())
            if not all(np.isfinite(part).all() for part in parts):
                again = partial(self.forward_again, batch)
                with torch.no_grad():
                    raise NonFiniteError(where_not_finite(self.model, self.graph, again, rows=rows))
        return measured

    def forward_again(self, batch: Batch) -> None:
        """Run the model on a batch once more, for those who look at its ops."""
        if self.loss:
            sample_losses(self.model, batch, self.loss_fn)
        else:
            call(self.model, placed(self.model, batch))


def _check_gradient(values: Tensor, name: str) -> None:
    if not values.requires_grad:
        message = f"{name} has no gradient; loss_fn must not detach it or switch gradients off"
        raise InputError(message)
