"""Held-out samples: those that plans are measured on, never those of the calibration."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.core.literals import Measuring
from inc_mp_plugin.core.results import LEAST_SAMPLES
from inc_mp_plugin.model.batches import batch_size, samples

if TYPE_CHECKING:
    from inc_mp_plugin.model.batches import Batch


@dataclass(frozen=True)
class HeldOut:
    """Samples to measure plans on, loaded when they are first needed.

    Attributes:
        identify: returns what identifies the samples; it may have to read their file.
        samples: how many a plan is reported on; a closed loop reads as many that come after them.
        random_plans: how many plans are drawn to compare predictions with.
        seed: of the draws.
        load: returns the batches of as many samples, after a number of others.
        through: what lowers the ops of the model that runs them; see `LossMeter`.
    """

    identify: Callable[[], dict[str, Any]]
    samples: int
    random_plans: int
    seed: int
    load: Callable[[int], Sequence[Batch]]
    through: Measuring = "auto"


@dataclass(frozen=True, eq=False)
class HeldOutBatches:
    """Held-out batches in memory, with how many random plans are measured on them, drawn from `seed`.

    `through` says what lowers the ops of the model that runs them; see `LossMeter`.

    Each is equal to itself alone, and a copy of it is itself: INC copies and compares its configurations.
    """

    batches: Sequence[Batch]
    random_plans: int
    seed: int
    through: Measuring = "auto"

    def __deepcopy__(self, memo: dict[int, Any]) -> HeldOutBatches:
        """Return itself."""
        return self

    @cached_property
    def total(self) -> int:
        """The number of samples."""
        return sum(map(batch_size, self.batches))

    def samples(self, *, verify: bool) -> int:
        """Count the samples that a plan is reported on: all, or the first half if a loop reads the second.

        Raises:
            InputError: there are too few.
        """
        if not self.total:
            message = "validation holds no batch; give at least one"
            raise InputError(message)
        if verify and self.total < 2 * LEAST_SAMPLES:
            message = (
                f"validation holds {self.total} samples; verify needs at least {2 * LEAST_SAMPLES}: the plan "
                "is reported on the first half, and corrected on the second; 128 or more are better"
            )
            raise InputError(message)
        return self.total // 2 if verify else self.total

    def heldout(self, *, verify: bool) -> HeldOut:
        """Name the samples for a measurement; `verify` says that a closed loop is to read half of them."""
        count = self.samples(verify=verify)

        def identify() -> dict[str, Any]:
            return {"validation.data": _fingerprint(self.batches), "validation.samples": count}

        def load(skip: int) -> Sequence[Batch]:
            return _Part(self.batches, skip, skip + count)

        return HeldOut(identify, count, self.random_plans, self.seed, load, self.through)

    def check_others(self, calibration: Iterable[Batch], *, verify: bool) -> None:
        """Refuse samples that calibration has seen, or, with `verify`, that both halves hold.

        Raises:
            InputError: one is; the text says which.
        """
        seen = {_of_tokens(sample) for sample in _each(calibration)}
        half = self.total // 2 if verify else 0
        first: set[str] = set()
        for number, sample in enumerate(_each(self.batches), 1):
            fingerprint = _of_tokens(sample)
            if fingerprint in seen:
                message = (
                    f"validation, sample {number}: it is a calibration sample; held-out ones must be others"
                )
                raise InputError(message)
            if number <= half:
                first.add(fingerprint)
            elif fingerprint in first:
                message = (
                    f"validation, sample {number}: it is among the first {half}, too; verify corrects and "
                    "reports the plan on different samples"
                )
                raise InputError(message)


def _fingerprint(batches: Iterable[Batch]) -> str:
    from inc_mp_plugin.libraries.torch import leaves
    from inc_mp_plugin.model.subject import hash_tensors

    return hash_tensors(leaf for batch in batches for leaf in leaves(batch))


def _of_tokens(sample: Batch) -> str:
    """Hash a sample; of tokens, those alone that are no padding, however many there are."""
    if isinstance(sample, dict) and {"input_ids", "attention_mask"} <= sample.keys():
        ids, mask = sample["input_ids"], sample["attention_mask"]
        if ids.shape == mask.shape:
            others = [value for value in sample.values() if getattr(value, "shape", None) != ids.shape]
            return _fingerprint([(ids[mask.bool()], *others)])
    return _fingerprint([sample])


def _each(batches: Iterable[Batch]) -> Iterable[Batch]:
    """Yield sample after sample, as batches of one."""
    for batch in batches:
        for place in range(batch_size(batch)):
            yield samples(batch, place, place + 1)


class _Part(Sequence[Any]):
    """The batches of the samples from `start` to `stop`, each read when asked for; the ends may be cut."""

    def __init__(self, batches: Sequence[Batch], start: int, stop: int) -> None:
        """Find the batches that hold these samples."""
        self._batches = batches
        self._places: list[tuple[int, int, int]] = []
        first = 0
        for number, batch in enumerate(batches):
            size = batch_size(batch)
            lower, upper = max(start - first, 0), min(stop - first, size)
            if lower < upper:
                self._places.append((number, lower, upper))
            first += size

    def __len__(self) -> int:
        """Count the batches."""
        return len(self._places)

    def __getitem__(self, index: Any) -> Any:
        """Read one batch, or a list of those of a slice."""
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        number, lower, upper = self._places[index]
        return samples(self._batches[number], lower, upper)
