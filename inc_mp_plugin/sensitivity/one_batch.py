"""The sensitivities of one batch: a forward pass, and a backward pass for each yardstick and draw."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from inc_mp_plugin.sensitivity.drawn_labels import drawn_losses
from inc_mp_plugin.sensitivity.maxabs import raise_to
from inc_mp_plugin.sensitivity.nonfinite import where_not_finite
from inc_mp_plugin.sensitivity.rows import Rows
from inc_mp_plugin.sensitivity.taps import Taps

if TYPE_CHECKING:
    from inc_mp_plugin.core.sensitivity import FloatArray
    from inc_mp_plugin.model.batches import Batch
    from inc_mp_plugin.model.losses import LossFunction
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
    the maxabs of each batch, and backward passes wait.
    """

    model: nn.Module
    graph: Graph
    loss_fn: LossFunction | None = None
    rounding: Errors | None = None
    loss: bool = True
    kl: Estimate | None = None
    low: bool = False
    held: MaxAbs | None = None

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
        taps = Taps(
            self.model,
            self.graph,
            size if self.loss else kl_size,
            self.rounding,
            maxabs=None if self.rounding is None or self.held is not None else self.rounding.maxabs,
            tokens=sample_lengths(batch),
            together=not self.loss,
            blocks=self.blocks,
        )

        def rows(losses: Tensor | None, distributions: Distributions | None) -> Measured:
            measured: Measured = {}
            if losses is not None:
                measured["loss"] = self._loss_rows(taps, losses, loss_of, keep=distributions is not None)
                taps.restart(kl_size, together=True)
            if distributions is not None:
                measured["kl"] = self._kl_rows(taps, distributions, numbers, loss_of=loss_of)
            return measured

        with taps:
            outputs = self.forward(batch)
            measured = rows(*outputs) if self.held is None else {}
        if self.held is not None:
            raise_to(self.held, taps.maxabs)
            return lambda: self._finite(rows(*outputs), batch)
        checked = self._finite(measured, batch)
        return lambda: checked

    def _loss_rows(self, taps: Taps, losses: Tensor, loss_of: int | None, *, keep: bool) -> Rows:
        own = losses if loss_of is None else losses[loss_of : loss_of + 1]
        scale = self._scale()
        torch.autograd.backward(own, torch.full_like(own, scale), retain_graph=keep)
        taps.finish()
        every = torch.ones(len(own))
        return _to_rows(taps, own, (every, every), scale**-2)

    def _kl_rows(
        self, taps: Taps, distributions: Distributions, numbers: Sequence[int], *, loss_of: int | None
    ) -> Rows:
        """Sum half the squares of all draws, for labels of each sample, or of all samples together."""
        estimate = self.kl or Estimate()
        rows = len(taps.totals.input)
        tokens = distributions.counted.sum(dim=1)
        sizes, scale = torch.ones(len(tokens)), self._scale() / float(tokens.max())
        losses = torch.zeros(len(tokens))
        for draw in range(estimate.draws):
            drawn = drawn_losses(distributions, numbers, seed=estimate.seed, draw=draw)
            own = drawn if loss_of is None else drawn[loss_of : loss_of + 1]
            keep = draw + 1 < estimate.draws
            torch.autograd.backward(own, torch.full_like(own, scale), retain_graph=keep)
            taps.finish()
            losses = losses + drawn.detach().cpu() / estimate.draws
        parts: list[Tensor] = [losses, tokens, sizes]
        if loss_of is not None:
            parts = [part[loss_of : loss_of + 1] for part in parts]
        if rows == 1:
            parts = [part.double().sum(dim=0, keepdim=True) for part in parts]
        own, tokens, sizes = parts
        return _to_rows(taps, own, (tokens, sizes), 0.5 * scale**-2 / estimate.draws)

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


def _to_rows(taps: Taps, losses: Tensor, counts: tuple[Tensor, Tensor], factor: float) -> Rows:
    """Turn totals into rows; squares are multiplied by the factor."""
    totals = taps.totals

    def scaled(parts: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        return {key: part.cpu().numpy() * factor for key, part in parts.items()}

    tokens, sizes = (count.double().cpu().numpy() for count in counts)
    squares = scaled({"input": totals.input, "weight": totals.weight})
    return Rows(
        losses.detach().double().cpu().numpy(),
        tokens,
        sizes,
        squares["input"],
        squares["weight"],
        taps.called,
        _largest(taps)[None],
        scaled(totals.rounding),
        scaled(totals.second),
        scaled(totals.shared),
        totals.reads.cpu().numpy()[None],
    )


def _largest(taps: Taps) -> FloatArray:
    """Give the maxabs of each op's first and second input, shape (2, ops); -1 for none."""
    largest = np.full((2, len(taps.columns)), -1.0)
    values = [value.double() for value in taps.maxabs.values()]
    device = values[0].device if values else None
    together = torch.stack([value.to(device) for value in values]).tolist() if values else []
    for (op, index), value in zip(taps.maxabs, together, strict=True):
        if op in taps.columns and index < len(largest):
            largest[index, taps.columns[op]] = value
    return largest


def _check_gradient(values: Tensor, name: str) -> None:
    if not values.requires_grad:
        message = f"{name} has no gradient; loss_fn must not detach it or switch gradients off"
        raise InputError(message)
