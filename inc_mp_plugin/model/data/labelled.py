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
    labels = torch.tensor([_label(place, sample, config.num_labels) for place, sample in read.items()])
    batches = text_batches(config, tokenizer, excerpt, shape)
    starts = range(0, excerpt.samples, shape.batch_size)
    return [
        {**batch, "labels": labels[start : start + shape.batch_size]}
        for start, batch in zip(starts, batches, strict=True)
    ]


def _label(place: str, sample: Any, classes: int) -> Any:
    if not isinstance(sample, Labelled):
        message = f'{place}: the model gives texts a class, and there is no "label" that is a number; add one'
        raise InputError(message)
    if isinstance(sample.label, int) and classes > 1 and not 0 <= sample.label < classes:
        message = f"{place}: label {sample.label} is no class of the model, which has 0 to {classes - 1}"
        raise InputError(message)
    return sample.label
