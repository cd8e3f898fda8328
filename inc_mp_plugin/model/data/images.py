"""Conversations with images as batches, by the model's own processor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.model.data.samples import Conversation, Sample, read_samples
from inc_mp_plugin.model.data.segments import Segment, segments
from inc_mp_plugin.model.losses import IGNORED_LABEL

if TYPE_CHECKING:
    from torch import Tensor

    from inc_mp_plugin.model.data.shape import BatchShape
    from inc_mp_plugin.model.data.source import Excerpt

_IMAGE_TOKENS = ("image_token_id", "image_token_index")  # names in configurations


def have_images(samples: Mapping[str, Sample]) -> bool:
    """Tell if samples have images.

    Raises:
        InputError: some have, and some have not.
    """
    without = [
        place for place, sample in samples.items() if not (isinstance(sample, Conversation) and sample.images)
    ]
    if without and len(without) < len(samples):
        message = (
            f"{without[0]}: no image, but other samples have one; give images in all samples, or in none"
        )
        raise InputError(message)
    return not without


def image_batches(config: Any, processor: Any, excerpt: Excerpt, shape: BatchShape) -> list[dict[str, Any]]:
    """Make batches of conversations with images; the loss is of texts alone, never of an image's tokens.

    Where a processor puts the images of several samples end to end, each sample is a batch of its own.

    Args:
        config: configuration of the model.
        processor: of transformers.
        excerpt: the samples; the paths of their images are beside their source.
        shape: of the batches.

    Raises:
        InputError: the samples or an image cannot be read, or a sample is longer than the sequence length.
    """
    read = list(read_samples(excerpt).items())
    batches = _batches(config, processor, read, shape)
    if all(map(_side_by_side, batches)):
        return batches
    return _batches(config, processor, read, replace(shape, batch_size=1))


def _batches(
    config: Any, processor: Any, samples: Sequence[tuple[str, Any]], shape: BatchShape
) -> list[dict[str, Any]]:
    size = shape.batch_size
    starts = range(0, len(samples), size)
    return [_batch(config, processor, samples[start : start + size], shape) for start in starts]


def _side_by_side(batch: Mapping[str, Tensor]) -> bool:
    """Tell if the first axis of every tensor counts samples."""
    return len({len(tensor) for tensor in batch.values()}) == 1


def _batch(
    config: Any, processor: Any, samples: Sequence[tuple[str, Any]], shape: BatchShape
) -> dict[str, Any]:
    parts = [segments(processor, place, sample, shape.labels) for place, sample in samples]
    images = [[_opened(place, path) for path in sample.images] for place, sample in samples]
    texts = ["".join(part.text for part in sample) for sample in parts]
    batch = _processed(processor, texts, images)
    lengths = batch["attention_mask"].sum(dim=1).tolist()
    for (place, _), length in zip(samples, lengths, strict=True):
        if length > shape.sequence_length:
            message = (
                f"{place}: {length} tokens with its images, and a sample with images is not cut; give "
                f"calibration.sequence_length={length} at least"
            )
            raise InputError(message)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED_LABEL)
    for name in _IMAGE_TOKENS:
        labels = labels.masked_fill(labels == getattr(config, name, IGNORED_LABEL), IGNORED_LABEL)
    if shape.labels == "answers":
        for row, (sample, own) in enumerate(zip(parts, images, strict=True)):
            start = batch["attention_mask"][row].argmax()  # after the padding
            for begin, end in _asked(processor, sample, own):
                labels[row, start + begin : start + end] = IGNORED_LABEL
    return {**batch, "labels": labels}


def _asked(processor: Any, parts: Sequence[Segment], images: list[Any]) -> list[tuple[int, int]]:
    """Find the tokens of a sample that are no answer, as (first, last + 1), counted by the processor."""
    texts, counts = accumulate(part.text for part in parts), accumulate(part.images for part in parts)
    lengths = [
        _processed(processor, [text], [images[:count]])["input_ids"].shape[1] if text else 0
        for text, count in zip(texts, counts, strict=True)
    ]
    spans = zip(parts, [0, *lengths], lengths, strict=False)
    return [(begin, end) for part, begin, end in spans if not part.counts]


def _processed(processor: Any, texts: list[str], images: list[list[Any]]) -> dict[str, Any]:
    options = {"padding": True, "return_tensors": "pt", "add_special_tokens": False}  # the template has them
    output = processor(text=texts, images=images if any(images) else None, **options)
    return dict(output)


def _opened(place: str, path: Path) -> Any:
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(path).convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        message = f"{place}: the image {path} cannot be read: {error}"
        raise InputError(message) from error
