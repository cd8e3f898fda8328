"""The INC configuration of `ip_mse`, for INC's `quantize`, `prepare` and `autotune`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from neural_compressor.torch.quantization.config import FP8Config

from inc_mp_plugin.core.errors import InputError, unknown
from inc_mp_plugin.inc.keys import NAME, inc_keys
from inc_mp_plugin.inc.versions import autotune_forgets_the_best
from inc_mp_plugin.runtime.progress import warn
from inc_mp_plugin.strategy.choices import check_settings
from inc_mp_plugin.strategy.settings import Settings, grid, split


class IPMSEConfig(FP8Config):  # type: ignore[misc]
    """INC configuration of `ip_mse`: the keys of `Settings`, which are a recipe's, and all of `FP8Config`.

    Making one makes the strategy known to INC, as `register` does.

    A key of ours may be a list: INC's `autotune` then tries its values, the fastest model first. A list of
    targets, or of held-out batches, is a single value.

    Example::

        quantize(model, IPMSEConfig(tau=0.01), run_fn=calibrate)
        quantize(model, IPMSEConfig(tau=0.01, verify=True, validation=heldout), run_fn=calibrate)
    """

    name = NAME
    __hash__ = None  # type: ignore[assignment]  # it can be changed, and is compared by content

    def __init__(self, **kwargs: Any) -> None:
        """Tell our keys from INC's and check both; INC's base class insists on the name kwargs.

        Raises:
            InputError: a key that neither `Settings` nor INC's FP8Config knows.
        """
        from inc_mp_plugin.strategy.entry import register

        register()
        ours, theirs = split(kwargs)
        for values in grid(ours):
            check_settings(Settings.of(values))
        allowed = inc_keys()
        for key in theirs:
            if key not in allowed:
                # INC ignores unknown keys: a misspelt tau would go unnoticed.
                raise InputError(unknown("IPMSEConfig key", key, allowed | set(Settings.__slots__)))
        super().__init__(**theirs)
        self.ours = ours
        self.theirs = theirs

    def expand(self) -> list[IPMSEConfig]:
        """List one configuration for each combination of values, the fastest model first."""
        expanded = [type(self)(**self.theirs, ip_mse=values) for values in grid(self.ours)]
        if autotune_forgets_the_best():
            warn(
                "If no configuration is good enough, this version of INC returns None; it returns the best "
                f"if TuningConfig is given max_trials={len(expanded)}, the number of configurations."
            )
        return expanded

    def __iter__(self) -> Iterator[IPMSEConfig]:
        """Yield this configuration alone: INC's autotune goes through what may be a list of them."""
        return iter((self,))

    def __eq__(self, other: object) -> bool:
        """Compare keys; INC's own comparison knows none of them, and autotune skips what is equal."""
        return isinstance(other, IPMSEConfig) and (self.ours, self.theirs) == (other.ours, other.theirs)

    def save_temp_json_file(self) -> None:
        """Write nothing: INC would leave a temporary file behind."""

    @classmethod
    def get_config_set_for_tuning(cls) -> IPMSEConfig:
        """Return a configuration with thresholds from fast to careful, for INC's `autotune`."""
        return cls(tau=[0.03, 0.01, 0.003])
