"""A request to a language model, as forward passes that can be timed or captured."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.core.literals import TimedDevice
from inc_mp_plugin.core.request import Request
from inc_mp_plugin.gain.bench import Pass
from inc_mp_plugin.libraries.transformers import cache_argument, cache_of, new_static_cache, position_argument
from inc_mp_plugin.model.batches import call

if TYPE_CHECKING:
    from torch import Tensor, nn

    from inc_mp_plugin.model.batches import Batch


def prompt(model: nn.Module, request: Request, device: TimedDevice = "cpu") -> dict[str, Any]:
    """Make a prompt of random tokens, the same ones every time.

    The tokens are `input_ids`, of shape (batch size, prompt tokens). If the model has an option for that,
    only the logits of the last token are computed.

    Args:
        model: a language model of transformers.
        request: gives the batch size and the number of tokens.
        device: where the tokens are put.
    """
    import torch

    config: Any = model.config
    generator = torch.Generator().manual_seed(0)
    shape = (request.batch_size, request.prompt_tokens)
    ids = torch.randint(0, config.get_text_config().vocab_size, shape, generator=generator)
    batch: dict[str, Any] = {"input_ids": ids.to(device)}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        batch["logits_to_keep"] = 1
    return batch


def check_context(model: nn.Module, request: Request) -> None:
    """Refuse a request that the model cannot serve.

    Raises:
        InputError: the model is no language model of transformers, or its context is too short.
    """
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "get_text_config"):
        message = (
            f"a request needs a language model of transformers, not a {type(model).__name__}; "
            "give a batch instead, whose forward pass is timed"
        )
        raise InputError(message)
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    tokens = request.prompt_tokens + request.output_tokens
    if context is not None and tokens > context:
        message = (
            f"request.prompt_tokens + request.output_tokens is {tokens}, but the model's context is "
            f"{context} tokens; ask for at most that"
        )
        raise InputError(message)


def batch_passes(model: nn.Module, batch: Batch) -> list[Pass]:
    """List the only pass of a batch: one forward pass, of any model."""
    return [Pass("ttft", 1, lambda: call(model, batch))]


def request_passes(
    model: nn.Module, request: Request, *, static_cache: bool, device: TimedDevice
) -> list[Pass]:
    """List the passes of a request: the prompt's, and decode steps if more than one token is asked for.

    Args:
        model: a language model of transformers, on the device.
        request: lengths and batch size.
        static_cache: if the key-value cache must have its full size from the start.
        device: where the model is.

    Raises:
        InputError: the model cannot serve the request.
    """
    check_context(model, request)
    answer = _Answer(model, request, static=static_cache, device=device)
    passes = [Pass("ttft", 1, answer.first_token)]
    if request.output_tokens:
        passes.append(Pass("tpot", request.output_tokens, answer.next_token, answer.prepare))
    return passes


class _Answer:
    """An answer that a model is giving: the cache and the token that the next step continues from."""

    def __init__(self, model: nn.Module, request: Request, *, static: bool, device: TimedDevice) -> None:
        self._model, self._request, self._static = model, request, static
        self._prompt, self._device = prompt(model, request, device), device
        self._cache: Any = None
        self._token: Any = None
        self._remaining = 0

    def first_token(self) -> Tensor:
        """Run the prompt, with a cache if tokens follow; return the tokens on the host."""
        cached = bool(self._request.output_tokens)
        options: dict[str, Any] = {"use_cache": cached}
        if cached and self._static:
            length = self._request.prompt_tokens + self._request.output_tokens
            cache = new_static_cache(self._model, self._request.batch_size, length)
            options |= self._arguments(cache, 0, self._request.prompt_tokens)
        output = self._model(**self._prompt, **options)
        self._cache = cache_of(output) if cached else None
        self._remaining = self._request.output_tokens
        return self._choose(output)

    def prepare(self) -> None:
        """Run the prompt again when there is no cache, or when all tokens have been given."""
        if not self._remaining:
            self.first_token()

    def next_token(self) -> Tensor:
        """Run a decode step; return the tokens on the host."""
        start = self._request.prompt_tokens + self._request.output_tokens - self._remaining
        self._remaining -= 1
        arguments = self._arguments(self._cache, start, 1)
        output = self._model(input_ids=self._token[:, None], use_cache=True, **arguments)
        return self._choose(output)

    def _arguments(self, cache: Any, start: int, tokens: int) -> dict[str, Any]:
        forward = self._model.forward
        return cache_argument(forward, cache) | position_argument(forward, start, tokens, self._device)

    def _choose(self, output: Any) -> Tensor:
        self._token = output.logits[:, -1].argmax(-1)
        on_host: Tensor = self._token.cpu()
        return on_host
