"""Settings of `ip_mse`, and their separation from the keys of INC."""

from __future__ import annotations

import copy
import difflib
import itertools
import json
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inc_mp_plugin.core.errors import InputError, unknown
from inc_mp_plugin.core.formats import converted_format
from inc_mp_plugin.core.knobs import KNOBS
from inc_mp_plugin.core.literals import (
    Accelerator,
    Attention,
    KVCache,
    NoiseModel,
    Objective,
    Strategy,
    Yardstick,
)
from inc_mp_plugin.core.request import Request
from inc_mp_plugin.core.results import VERIFY_CONFIDENCE
from inc_mp_plugin.gain.bench import TimingSettings
from inc_mp_plugin.inc.backend import completed_on_cpu, is_cpu, keys_of
from inc_mp_plugin.inc.keys import NAME, inc_keys
from inc_mp_plugin.inc.selection import pattern_lists
from inc_mp_plugin.model.heldout import HeldOutBatches
from inc_mp_plugin.pipeline.keys_in_memory import heldout_batches
from inc_mp_plugin.runtime.progress import warn
from inc_mp_plugin.targets.cpu import CPU_QDQ

_OLD = "values"  # the name of `strategy` in 0.1.0
_LISTS = ("targets",)  # keys whose value is a list
_OF_OURS = {"ours", "theirs"}  # attributes of our subclass beside INC's keys

# Keys of ours that nothing of INC's looks like: INC takes any misspelling of them without a word.
_UNLIKE_INC = (*KNOBS, "objective", "confidence", "loss_fn")


@dataclass(frozen=True, slots=True)
class Settings:
    """The keys of ours: those of a recipe, by the same names, for a model that INC has.

    A threshold `tau` or `kl`, a `gain_fraction` or a `budget`, and what the plan is made for; see `mp.tune`.
    Beside them, `samples` bounds how many calibration samples are kept for the gradients, and `loss_fn(model,
    batch)` returns one loss per sample. Measured noise rounds under the configuration's own scale method.

    The consumer is INC on this machine; `targets` are others that must be able to run the plan, too. On a
    Gaudi, `attention` and `reuse_cache` say how optimum-habana will run the model. Without `kv_cache`, the
    cache is in FP8 if the lists let it be, and nothing is to be verified.
    """

    tau: float | None = None
    kl: float | None = None
    gain_fraction: float | None = None
    budget: float | None = None
    constraint: Yardstick | None = None
    strategy: Strategy = NAME
    seed: int = 0
    objective: Objective = "memory"
    device: Accelerator = "gaudi2"
    request: Request | Mapping[str, Any] | None = None
    timing: TimingSettings | Mapping[str, Any] | None = None
    samples: int = 64
    loss_fn: Callable[..., Any] | None = None
    noise: NoiseModel = "uniform"
    confidence: float | None = None
    verify: bool = False
    verify_confidence: float = VERIFY_CONFIDENCE
    validation: HeldOutBatches | None = None
    targets: Sequence[str] = ()
    kv_cache: KVCache | None = None
    attention: Attention = "eager"
    reuse_cache: bool = False
    run: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, ours: Mapping[str, Any]) -> Settings:
        """Make settings of the keys of ours; tau is 0.01 if no knob is given.

        Raises:
            InputError: a key that is not ours.
        """
        for key in ours:
            if key not in cls.__slots__:
                raise InputError(unknown("ip_mse key", key, cls.__slots__))
        knobs = {} if set(KNOBS) & ours.keys() else {"tau": 0.01}
        return cls(**{**knobs, **ours})

    @property
    def of_a_recipe(self) -> dict[str, Any]:
        """The keys that a recipe has, too, with their values."""
        own = ("samples", "loss_fn")
        return {key: getattr(self, key) for key in self.__slots__ if key not in own}


def grid(ours: Mapping[str, Any]) -> list[dict[str, Any]]:
    """List every combination of the keys that are given as lists, the largest gain first.

    A larger threshold, a larger wanted gain or a smaller budget is the faster model; other keys keep their
    order. A list of targets is one value, and a list of such lists holds several.

    Example:
        >>> [values["tau"] for values in grid({"tau": [0.003, 0.03, 0.01], "objective": "memory"})]
        [0.03, 0.01, 0.003]
    """
    choices = []
    for key, value in ours.items():
        several = value if has_several(key, value) else [value]
        values = [each for place, each in enumerate(several) if each not in several[:place]]
        if key in KNOBS:
            values.sort(reverse=key != "budget")
        choices.append(values)
    return [dict(zip(ours, combination, strict=True)) for combination in itertools.product(*choices)]


def has_several(key: str, value: Any) -> bool:
    """Tell if a key is given several values, for `autotune` to try."""
    if not isinstance(value, (list, tuple)):
        return False
    return key not in _LISTS or any(isinstance(each, (list, tuple)) for each in value)


def split(keys: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tell keys of ours (flat, or nested under "ip_mse") from INC's.

    Raises:
        InputError: "ip_mse" is not a mapping, a key is close to one of ours, or `validation` is no batches.

    Example:
        >>> split({"strategy": "ip_mse", "ip_mse": {"tau": 0.1}, "use_qdq": True})
        ({'tau': 0.1}, {'use_qdq': True})
    """
    nested = keys.get(NAME, {})
    if not isinstance(nested, Mapping):
        message = f'"{NAME}" is {nested!r}; it must hold keys such as {{"tau": 0.01}}'
        raise InputError(message)
    for key in keys:
        near = difflib.get_close_matches(str(key), _UNLIKE_INC, n=1, cutoff=0.75)
        if near and key not in Settings.__slots__ and key not in inc_keys():
            raise InputError(unknown("key", str(key), near))
    # In the order of the fields: `grid` varies the last key first, and thresholds are to decide the order.
    names = (*Settings.__slots__, _OLD)
    theirs = {key: value for key, value in keys.items() if key not in {*names, NAME}}
    ours = {**{key: keys[key] for key in names if key in keys}, **nested}
    if _OLD in ours:
        warn(f'the key "{_OLD}" of ip_mse is now called "strategy"; the old name works until version 0.3')
        old = ours.pop(_OLD)
        ours["strategy"] = [each or NAME for each in old] if isinstance(old, (list, tuple)) else old or NAME
    if "validation" in ours:
        ours["validation"] = heldout_batches(ours["validation"])  # a list of batches is one value
    if ours.get("strategy") == NAME:
        del ours["strategy"]  # as if it were not given: INC compares configurations by their keys
    return ours, theirs


def read(config: Any, base: str) -> tuple[Settings, dict[str, Any]]:
    """Read settings of ours, and INC's keys as a JSON file for this machine needs them.

    A configuration that came from a file is that file, as in INC. The high precision is the model's
    own format, or ops left in it could not take the others' outputs; on a CPU, what INC refuses there
    (real FP8, hardware scales) is replaced by what it runs.

    Raises:
        InputError: a key of ours that does not exist, or malformed lists.
    """
    if config.json_file is not None:
        keys = json.loads(Path(config.json_file).read_text(encoding="utf-8"))
    else:
        keys = {key: value for key, value in keys_of(config).items() if key not in _OF_OURS}
    ours, theirs = split(keys)
    ours = {**getattr(config, "ours", {}), **ours}
    inc = {key: copy.deepcopy(value) for key, value in theirs.items()}
    inc.update(pattern_lists(inc))
    for old in ("whitelist", "blacklist"):
        inc.pop(old, None)
    inc.setdefault("dump_stats_path", "./hqt_output/measure")  # INC's own default has no folder, and fails
    inc["hp_dtype"] = converted_format(base)
    if is_cpu():
        inc["allowlist"]["types"] = completed_on_cpu(inc["allowlist"]["types"])
        if str(inc.get("use_qdq", False)).lower() != "true":
            inc["use_qdq"] = "True"
        if str(inc.get("scale_method", "maxabs_hw")).lower() == "maxabs_hw":
            inc["scale_method"] = CPU_QDQ.scale_methods[0]
    return Settings.of(ours), inc


def remove_temporary_file(config: Any) -> None:
    """Remove the file that INC wrote for a configuration without one, and never removes itself."""
    path = Path(config.json_file or "")
    if path.parent == Path(tempfile.gettempdir()) and re.fullmatch(r"tmp\w{8}\.json", path.name):
        path.unlink(missing_ok=True)
        config.json_file = None
