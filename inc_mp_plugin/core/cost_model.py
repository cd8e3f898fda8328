"""The price of a format: a model of the rounding noise, and a KV cache, over sensitivities."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.core.formats import alpha
from inc_mp_plugin.core.literals import NoiseModel
from inc_mp_plugin.core.sensitivity import Sensitivity

if TYPE_CHECKING:
    from inc_mp_plugin.core.sensitivity import FloatArray

CACHE_FORMAT = "fp8_e4m3"


@dataclass(frozen=True)
class CostModel:
    """Predicted cost of ops in formats, in the unit of a yardstick: what `LossModel` and `KLModel` share.

    Attributes:
        sensitivity: of the ops that may leave the base format.
        noise: the model of the rounding noise that prices a format: one of `formats.NOISES`.
        cached: bgemms that read their second input from a KV cache in FP8: it is rounded whatever their own
            format, and is no part of what lowering them costs.
    """

    sensitivity: Sensitivity
    noise: NoiseModel = "uniform"
    cached: frozenset[str] = frozenset()

    @property
    def ops(self) -> tuple[str, ...]:
        """Names of the ops that may leave the base format."""
        return self.sensitivity.ops

    def row_costs(self, format_name: str) -> FloatArray:
        """Predict the cost of each op alone in a format, row by row, shape (rows, ops).

        alpha_format ||z * dg/dz||^2 (eq. 22), or ||q * dg/dz||^2 with the measured rounding error q, per
        token where the yardstick is the KL divergence.

        Raises:
            InputError: the rounding error of this format was not measured.
        """
        if self.noise != "measured":
            whole: FloatArray = alpha(format_name, self.noise) * (
                self.sensitivity.input + self.sensitivity.weight
            )
        elif format_name not in self.sensitivity.rounding:
            message = (
                f"the noise of {format_name} was not measured; `inc-mp tune` with noise=measured does it"
            )
            raise InputError(message)
        else:
            whole = self.sensitivity.rounding[format_name]
        if self.cached:
            whole = whole - self._of_second(format_name)
        return self._per_token(whole)

    def plan_row_costs(self, format_name: str, lowered: Collection[str]) -> FloatArray:
        """Predict the cost of these ops together, all in one format, row by row, shape (rows,).

        Raises:
            InputError: as `row_costs`.
        """
        columns = [i for i, op in enumerate(self.ops) if op in lowered]
        together: FloatArray = self.row_costs(format_name)[:, columns].sum(axis=1)
        return together

    @cached_property
    def cache_row_costs(self) -> FloatArray:
        """Cost of a KV cache in FP8, row by row, shape (rows,).

        That of the keys and values which the `cached` bgemms read; 0 without any.

        Raises:
            InputError: it was not measured.
        """
        if not self.cached:
            return self.sensitivity.loss * 0.0
        return self._per_token(self._of_second(CACHE_FORMAT).sum(axis=1))

    @cached_property
    def cache_cost(self) -> float:
        """Cost of a KV cache in FP8: the mean over rows."""
        return float(self.cache_row_costs.mean())

    def costs(self, format_name: str) -> dict[str, float]:
        """Predict the cost of each op alone in a format: the mean over rows (eq. 24)."""
        means = self.row_costs(format_name).mean(axis=0)
        return dict(zip(self.ops, means.tolist(), strict=True))

    def _per_token(self, whole: FloatArray) -> FloatArray:
        """Divide by the mean number of tokens of a row, where the yardstick counts per token."""
        if self.sensitivity.tokens is None:
            return whole
        per_token: FloatArray = whole / self.sensitivity.tokens_per_row
        return per_token

    def _of_second(self, format_name: str) -> FloatArray:
        """Price the second inputs of the cached bgemms in a format, shape (rows, ops)."""
        key = format_name if self.noise == "measured" else "input"
        if key not in self.sensitivity.second:
            message = (
                f"what a KV cache in {format_name} costs was not measured; "
                "`inc-mp tune` in a new folder does it"
            )
            raise InputError(message)
        factor = 1.0 if key == format_name else alpha(format_name, self.noise)
        part = factor * self.sensitivity.second[key]
        second: FloatArray = part * [float(op in self.cached) for op in self.ops]
        return second
