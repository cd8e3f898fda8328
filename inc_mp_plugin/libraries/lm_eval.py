"""Private and undocumented parts of lm-evaluation-harness; last checked with lm-eval 0.4.13."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_WITH_BARS = ("loglikelihood", "loglikelihood_rolling", "_loglikelihood_tokens", "generate_until")


def without_bars(harness: Any) -> Any:
    """Stop the progress bars of the wrapper HFLM, in place, and return it.

    Neither TQDM_DISABLE nor evaluate() can stop them: one of the wrapper's methods calls a private one,
    which takes the setting, without passing it on. 0.4.13.
    """
    for name in _WITH_BARS:
        setattr(harness, name, _without_bar(getattr(harness, name)))
    return harness


def _without_bar(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def quiet(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **{**kwargs, "disable_tqdm": True})

    return quiet


@contextmanager
def weights_left_untied(model: Any) -> Iterator[None]:
    """Keep HFLM from tying weights, which would undo a converted tied head: it calls this method. 0.4.13."""
    vars(model)["tie_weights"] = lambda: None
    try:
        yield
    finally:
        del vars(model)["tie_weights"]


def metric_of(key: str) -> tuple[str, str] | None:
    """Split a key of a row of results, "metric,filter", into both; None for any other key.

    Standard errors stand among the keys as metrics of their own; for them it is None, too. 0.4.13.

    Example:
        >>> metric_of("acc,none"), metric_of("acc_stderr,none"), metric_of("alias")
        (('acc', 'none'), None, None)
    """
    metric, _, filter_name = key.partition(",")
    return (metric, filter_name) if filter_name and not metric.endswith("_stderr") else None
