"""Batches of a source, made as a model takes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from inc_mp_plugin.model.data.answers import answer_batches
from inc_mp_plugin.model.data.batches import text_batches
from inc_mp_plugin.model.data.images import have_images, image_batches
from inc_mp_plugin.model.data.labelled import labelled_batches
from inc_mp_plugin.model.data.samples import read_samples
from inc_mp_plugin.model.loading import is_classifier, load_processor, load_tokenizer

if TYPE_CHECKING:
    from inc_mp_plugin.model.data.shape import BatchShape
    from inc_mp_plugin.model.data.source import Excerpt


def load_batches(
    config: Any,
    tokenizer_name: str,
    excerpt: Excerpt,
    shape: BatchShape,
    *,
    trust_remote_code: bool,
) -> list[dict[str, Any]]:
    """Make batches of samples: of texts, labels, prompts with answers, or images.

    Args:
        config: configuration of the model; it tells an encoder-decoder.
        tokenizer_name: folder of the tokenizer (with images: of the processor), or its name on a hub.
        excerpt: the samples.
        shape: of the batches.
        trust_remote_code: run code that comes with the tokenizer.

    Raises:
        InputError: the tokenizer or the samples cannot be read, are too few, or do not go with the model.
    """
    tokenizer = load_tokenizer(tokenizer_name, trust_remote_code=trust_remote_code)
    if is_classifier(config):
        return labelled_batches(config, tokenizer, excerpt, shape)
    if config.is_encoder_decoder:
        return answer_batches(config, tokenizer, excerpt, shape)
    if not shape.pack and have_images(read_samples(excerpt)):
        processor = load_processor(tokenizer_name, trust_remote_code=trust_remote_code)
        return image_batches(config, processor, excerpt, shape)
    return text_batches(config, tokenizer, excerpt, shape)
