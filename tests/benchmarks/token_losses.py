"""Cross entropy of long vocabularies: time, and error against float64, of ours and of two of PyTorch's.

python tests/benchmarks/token_losses.py
"""

import time

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from inc_mp_plugin.model.losses import IGNORED_LABEL
from inc_mp_plugin.model.token_losses import token_losses

CASES = ((49_152, 4, 256), (262_144, 1, 256))
TURNS = 3


def vocabulary_in_the_middle(logits: Tensor, labels: Tensor) -> Tensor:
    """As it was: PyTorch then adds up one by one."""
    return cross_entropy(logits.transpose(1, 2), labels, reduction="none")


def vocabulary_last(logits: Tensor, labels: Tensor) -> Tensor:
    """PyTorch's usual way."""
    return cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)


def ours(logits: Tensor, labels: Tensor) -> Tensor:
    """In blocks of tokens."""
    return token_losses(logits, labels, IGNORED_LABEL)


WAYS = (vocabulary_in_the_middle, vocabulary_last, ours)


def main() -> None:
    """Print the best of some turns, each with forward and backward pass."""
    for vocabulary, samples, tokens in CASES:
        torch.manual_seed(0)
        values = 3.0 * torch.randn(samples, tokens, vocabulary)
        labels = torch.randint(0, vocabulary, (samples, tokens))
        exact = vocabulary_last(values[:1].double(), labels[:1]).mean()
        seconds = {way.__name__: float("inf") for way in WAYS}
        for _ in range(TURNS):
            for way in WAYS:
                logits = values.clone().requires_grad_()
                start = time.perf_counter()
                losses = way(logits, labels)
                losses.mean().backward()
                seconds[way.__name__] = min(seconds[way.__name__], time.perf_counter() - start)
        for way in WAYS:
            with torch.no_grad():
                error = float(way(values[:1], labels[:1]).double().mean() / exact) - 1.0
            faster = seconds[WAYS[0].__name__] / seconds[way.__name__]
            print(
                f"{vocabulary:7d} words, {samples} x {tokens} tokens, {way.__name__:25s}"
                f"{seconds[way.__name__]:6.2f} s, {faster:4.1f} times as fast, relative error {error:+.1e}"
            )


if __name__ == "__main__":
    main()
