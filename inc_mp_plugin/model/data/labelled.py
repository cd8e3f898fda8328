"""Texts with labels as batches for a classifier."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.model.data.batches import text_batches
from inc_mp_plugin.model.data.samples import Labelled, read_samples

if TYPE_CHECKING:
    from inc_mp_plugin.model.data.shape import BatchShape
    from inc_mp_plugin.model.data.source import Excerpt


def labelled_batches(
    config: Any, tokenizer: Any, excerpt: Excerpt, shape: BatchShape
) -> list[dict[str, Any]]:
    """Make batches of texts, as `text_batches` does, with the label of each.

    Args:
        config: configuration of the model; it has the names of the classes.
        tokenizer: of transformers.
        excerpt: the samples.
        shape: of the batches.

    Raises:
        InputError: as `text_batches`; a sample has no label, or a class that the model does not know.
    """
    import torch

    if shape.pack or shape.labels != "all":
        message = "pack and labels: answers are of language models, and this model gives texts a class"
        raise InputError(message)
    read = read_samples(excerpt)
    given = [_label(place, sample, config) for place, sample in read.items()]
    if len({isinstance(label, list) for label in given}) > 1:
        message = f"some labels of {excerpt.source.path} are lists, and some are numbers; give all alike"
        raise InputError(message)
    labels = torch.tensor(given)
    batches = text_batches(config, tokenizer, excerpt, shape)
    starts = range(0, excerpt.samples, shape.batch_size)
    return [
        {**batch, "labels": labels[start : start + shape.batch_size]}
        for start, batch in zip(starts, batches, strict=True)
    ]


def _label(place: str, sample: Any, config: Any) -> Any:
    """Return a class as an integer, or several classes or numbers as floating-point numbers."""
    classes, problem = config.num_labels, getattr(config, "problem_type", None)
    if not isinstance(sample, Labelled):
        message = f'{place}: the model gives texts a class, and there is no "label" that is a number; add one'
        raise InputError(message)
    label = sample.label
    if classes == 1 or problem in ("regression", "multi_label_classification") or isinstance(label, tuple):
        numbers = label if isinstance(label, tuple) else (label,)
        if len(numbers) != classes:
            message = f"{place}: {len(numbers)} labels, and the model gives {classes} numbers; give as many"
            raise InputError(message)
        return [float(number) for number in numbers]
    if label != int(label) or not 0 <= label < classes:
        message = f"{place}: label {label} is no class of the model, which has 0 to {classes - 1}"
        raise InputError(message)
    return int(label)
