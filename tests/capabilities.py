"""Marks for tests of something that older libraries lack, named for the capability, not for a version."""

import inspect
from importlib import import_module
from importlib.util import find_spec

import pytest

fused_experts = pytest.mark.skipif(
    not find_spec("transformers.integrations.moe"), reason="transformers keeps experts as lists of modules"
)


def exposable_attention(*names: str) -> pytest.MarkDecorator:
    """Mark for models whose attention is a function of its arguments alone, which others can stand in for."""
    lacking = [name for name in names if not _is_function(name)]
    return pytest.mark.skipif(bool(lacking), reason=f"attention of {lacking} cannot be exchanged")


def _is_function(name: str) -> bool:
    module = import_module(f"transformers.models.{name}.modeling_{name}")
    eager = getattr(module, "eager_attention_forward", None)
    return eager is not None and "scaling" in inspect.signature(eager).parameters


def common_masks(name: str) -> pytest.MarkDecorator:
    """Mark for a model whose masks the common function makes, in the shape of the scores."""
    return _mark(name, "create_causal_mask(", f"{name} makes its masks in its own way")


def images_in_a_trace(name: str) -> pytest.MarkDecorator:
    """Mark for a model that reads images, and counts their tokens without asking for values."""
    return _mark(name, "torch_compilable_check(", f"{name} asks for values to count an image's tokens")


def answers_as_they_are(name: str) -> pytest.MarkDecorator:
    """Mark for an encoder-decoder whose labels its own loss does not shift once more."""
    return _mark(name, "CrossEntropyLoss(", f"the loss of {name} shifts its labels twice")


def _mark(name: str, word: str, reason: str) -> pytest.MarkDecorator:
    if not find_spec(f"transformers.models.{name}"):
        return pytest.mark.skip(reason=f"transformers has no {name}")
    source = inspect.getsource(import_module(f"transformers.models.{name}.modeling_{name}"))
    return pytest.mark.skipif(word not in source, reason=reason)
