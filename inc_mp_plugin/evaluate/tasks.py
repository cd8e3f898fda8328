"""Accuracy on tasks, through EleutherAI's lm-evaluation-harness."""

from __future__ import annotations

import copy
import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inc_mp_plugin.core.errors import InputError, NonFiniteError
from inc_mp_plugin.evaluate.answers import Answers, among
from inc_mp_plugin.libraries.lm_eval import metric_of, weights_left_untied, without_bars
from inc_mp_plugin.libraries.torch import evaluating

if TYPE_CHECKING:
    from torch import nn

# Metrics that the paper reports of its four tasks; any other task is reported with all its metrics.
METRICS = {
    "lambada_openai": ("acc", "perplexity"),
    "hellaswag": ("acc_norm",),
    "winogrande": ("acc",),
    "piqa": ("acc",),
}


@dataclass(frozen=True, slots=True)
class Tasks:
    """Tasks with their documents, ready to be run any number of times."""

    names: tuple[str, ...]
    loaded: Mapping[str, Any]


def load_tasks(names: Sequence[str], *, include_path: Path | None = None) -> Tasks:
    """Load tasks and their documents, once for several models.

    Args:
        names: of tasks, groups or tags of lm-eval, or of tasks of the folder.
        include_path: a folder with task files (YAML) of one's own. lm-eval's own 14,000 tasks take seconds to
            list, and are searched only for names that are not in the folder.

    Raises:
        InputError: lm-eval is not installed, a name is unknown, the folder is not there, or a task's
            documents cannot be loaded.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ModuleNotFoundError as error:
        message = f'tasks need lm-eval ({error}): pip install "inc_mp_plugin[eval]"'
        raise InputError(message) from None
    if not names:
        message = "no task was given; give some, such as lambada_openai"
        raise InputError(message)
    if include_path is not None and not include_path.is_dir():
        message = f"include_path: there is no folder {include_path}"
        raise InputError(message)
    folder = None if include_path is None else str(include_path.resolve())
    manager = TaskManager(include_path=folder, include_defaults=False)
    if not set(names) <= set(manager.all_tasks):
        manager = TaskManager(include_path=folder)
    for name in names:
        if name not in manager.all_tasks:
            near = difflib.get_close_matches(name, manager.all_tasks, n=4) or list(METRICS)
            message = f"lm-eval has no task {name!r}; near: {', '.join(near)}; all: lm-eval ls tasks"
            raise InputError(message)
    return Tasks(tuple(names), _load(manager, names))


def evaluate_tasks(
    model: nn.Module,
    tokenizer: Any,
    tasks: Sequence[str] | Tasks,
    *,
    include_path: Path | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    max_length: int | None = None,
) -> dict[str, dict[str, float]]:
    """Run a model on tasks; the model leaves as it came.

    Args:
        model: a causal language model of transformers, on any device, converted by INC or not.
        tokenizer: the model's tokenizer.
        tasks: names, or the tasks of `load_tasks`.
        include_path: as in `load_tasks`, for names.
        limit: number of documents of each task, from the first on; all if not given.
        batch_size: number of documents run at once; changes speed and memory, and results by rounding only.
        max_length: number of tokens that the model takes; read from its configuration if not given. Longer
            documents lose their beginning.

    Returns:
        {task: {metric: value}} of every task, and of every group with metrics of its own.

    Raises:
        InputError: as `load_tasks`; or the model or the tokenizer is not of transformers.
        NonFiniteError: the model gave NaN, or a metric is not finite.
    """
    loaded = tasks if isinstance(tasks, Tasks) else load_tasks(tasks, include_path=include_path)
    from lm_eval import evaluate

    with evaluating(model), weights_left_untied(model):
        harness = _harness(model, tokenizer, batch_size, max_length)
        try:
            # Not simple_evaluate: it seeds all generators, and lists this machine's packages each time.
            results = evaluate(
                lm=harness, task_dict=loaded.loaded, limit=limit, bootstrap_iters=0, log_samples=False
            )
        except OverflowError:
            message = f"a perplexity of {', '.join(loaded.names)} is too large for a floating-point number"
            raise NonFiniteError(message) from None
    _check_answers(loaded)
    metrics = {name: _metrics(name, row) for name, row in results["results"].items()}
    return {name: values for name, values in metrics.items() if values}


def _load(manager: Any, names: Sequence[str]) -> Mapping[str, Any]:
    """Load each task by itself, so that an error can name it; then all together."""
    parts = []
    for name in names:
        try:
            parts.append(manager.load([name]))
        except (OSError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            message = (
                f"the documents of task {name!r} cannot be loaded ({reason}); load the task once where there "
                "is a network, or give tasks of your own by include_path"
            )
            raise InputError(message) from None
    together = {
        key: {k: v for part in parts for k, v in part[key].items()}
        for key in ("tasks", "groups", "group_map")
    }
    for task in together["tasks"].values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=1234)  # lm-eval's own
    return together


def _harness(model: Any, tokenizer: Any, batch_size: int, max_length: int | None) -> Any:
    """Wrap a model for lm-eval."""
    from lm_eval.models.huggingface import HFLM

    if not (hasattr(model, "config") and hasattr(model, "device") and hasattr(tokenizer, "eos_token_id")):
        message = (
            "tasks need a model and a tokenizer of transformers, "
            f"not a {type(model).__name__} and a {type(tokenizer).__name__}"
        )
        raise InputError(message)
    harness = HFLM(
        pretrained=model,
        backend="causal",
        tokenizer=copy.deepcopy(tokenizer),  # HFLM may give it a padding token
        batch_size=batch_size,
        max_length=max_length,
        softmax_dtype="float32",  # not the model's: sums of BF16 logarithms would hide small changes
    )
    return without_bars(harness)


def answers_to(tasks: Tasks) -> dict[str, Answers]:
    """Collect the answers of the model that has just run on tasks.

    Tasks that neither choose among answers, one of them right, nor have a single one, have none.
    """
    answers = {name: _answers(task) for name, task in tasks.loaded["tasks"].items()}
    return {name: given for name, given in answers.items() if given is not None}


def _answers(task: Any) -> Answers | None:
    """Collect the answers to the documents of a task."""
    given: dict[int, dict[int, tuple[float, bool]]] = {}
    documents: dict[int, Any] = {}
    for instance in task.instances:
        given.setdefault(instance.doc_id, {})[instance.idx] = instance.resps[0]
        documents[instance.doc_id] = instance.doc
    rows = [[row[place] for place in sorted(row)] for row in given.values()]
    if task.OUTPUT_TYPE == "loglikelihood":
        single = [row[0] for row in rows]
        greedy = np.array([float(is_greedy) for _, is_greedy in single])
        return Answers(greedy, greedy, np.array([value for value, _ in single]))
    if task.OUTPUT_TYPE != "multiple_choice":
        return None
    right = [task.doc_to_target(document) for document in documents.values()]
    if not all(
        isinstance(number, int) and number < len(row) for number, row in zip(right, rows, strict=True)
    ):
        return None
    return among([[value for value, _ in row] for row in rows], right)


def _check_answers(tasks: Tasks) -> None:
    """Refuse NaN among the model's answers: an accuracy would count NaN as a wrong answer without a word."""
    for name, task in tasks.loaded["tasks"].items():
        for instance in task.instances:
            for answer in instance.resps:
                value = answer[0] if isinstance(answer, tuple) else answer
                if isinstance(value, float) and math.isnan(value):
                    message = f"the model gives NaN on document {instance.doc_id} of task {name!r}"
                    raise NonFiniteError(message)


def _metrics(name: str, row: Mapping[str, Any]) -> dict[str, float]:
    """Extract the metrics to be reported of a task from its row in lm-eval's results."""
    metrics: dict[str, float] = {}
    for key, value in row.items():
        metric, filter_name = metric_of(key) or ("", "")
        if not metric or metric not in METRICS.get(name, (metric,)):
            continue
        if not math.isfinite(value):
            message = f"{metric} of task {name!r} is {value}"
            raise NonFiniteError(message)
        metrics[metric if filter_name == "none" else key] = float(value)
    return metrics
