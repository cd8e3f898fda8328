"""Handwritten digits of 8 x 8 pixels, and a small residual network that tells them apart."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from inc_mp_plugin.core.errors import InputError

Batch = tuple[Tensor, Tensor]

TRAINING_IMAGES = 1000  # of 1,797; the others are for the test
BATCH_SIZE = 100
_SPLIT = 1  # settings were chosen on another split of the same images
_WHITE = 16  # the largest pixel
_MOVES = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))  # of the images that accuracies are measured on


@dataclass(frozen=True, slots=True)
class Digits:
    """Images of shape (images, 1, 8, 8) from 0 to 1, and their digits."""

    images: Tensor
    labels: Tensor

    def moved(self) -> Batch:
        """All images as they are, and moved by a pixel to each side: five times as many."""
        images = torch.cat([moved(self.images, *move) for move in _MOVES])
        return images, self.labels.repeat(len(_MOVES))

    def epochs(self, number: int, seed: int) -> list[Batch]:
        """Batches of so many epochs: in random order, each image moved by up to a pixel."""
        generator = torch.Generator().manual_seed(seed)
        return [batch for _ in range(number) for batch in self._epoch(generator)]

    def _epoch(self, generator: torch.Generator) -> list[Batch]:
        order = torch.randperm(len(self.images), generator=generator)
        images, labels = self.images[order], self.labels[order]
        across, down = torch.randint(-1, 2, (2, len(order)), generator=generator)
        result = torch.empty_like(images)
        for x in (-1, 0, 1):
            for y in (-1, 0, 1):
                chosen = (across == x) & (down == y)
                result[chosen] = moved(images[chosen], x, y)
        return batches(result, labels, BATCH_SIZE)


def batches(images: Tensor, labels: Tensor, size: int) -> list[Batch]:
    """Images and labels in batches of a size."""
    starts = range(0, len(images), size)
    return [(images[start : start + size], labels[start : start + size]) for start in starts]


def moved(images: Tensor, across: int, down: int) -> Tensor:
    """Images moved by -1, 0 or 1 pixels in each direction; what comes in is black, as the margin is."""
    framed = nn.functional.pad(images, (1, 1, 1, 1))
    height, width = images.shape[-2:]
    return framed[..., 1 - down : 1 - down + height, 1 - across : 1 - across + width]


@lru_cache(maxsize=1)
def load() -> tuple[Digits, Digits]:
    """The images for training and those for the test, always split alike.

    Raises:
        InputError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits  # type: ignore[import-untyped]
    except ImportError as error:
        message = "scikit-learn, whose digits these are, is missing: pip install scikit-learn"
        raise InputError(message) from error
    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32).unsqueeze(1) / _WHITE
    labels = torch.tensor(found.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(_SPLIT))
    training, test = order[:TRAINING_IMAGES], order[TRAINING_IMAGES:]
    return Digits(images[training], labels[training]), Digits(images[test], labels[test])


def loss_fn(model: nn.Module, batch: Batch) -> Tensor:
    """Cross entropy of each image, in nats."""
    images, labels = batch
    return nn.functional.cross_entropy(model(images), labels, reduction="none")


class Block(nn.Module):
    """Two convolutions and a shortcut, which is a convolution of one pixel where the shape changes."""

    def __init__(self, channels: int, wider: int, stride: int) -> None:
        """From `channels` to `wider` channels; a stride of 2 halves height and width."""
        super().__init__()
        self.conv1 = nn.Conv2d(channels, wider, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(wider)
        self.conv2 = nn.Conv2d(wider, wider, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(wider)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1:
            conv = nn.Conv2d(channels, wider, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(wider))

    def forward(self, value: Tensor) -> Tensor:
        """Shape (images, channels, height, width) in, (images, wider, ...) out."""
        inner = nn.functional.relu(self.norm1(self.conv1(value)))
        return nn.functional.relu(self.norm2(self.conv2(inner)) + self.shortcut(value))


class Network(nn.Module):
    """A residual network of 15 convolutions and a linear head: ResNet's plan, on 8 x 8 pixels.

    Where height and width halve, channels double, so that most convolutions have as many
    multiply-accumulates as the others.
    """

    def __init__(self, seed: int, channels: int = 6) -> None:
        """Weights are drawn from the seed."""
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.stem = nn.Conv2d(1, channels, 3, 1, 1, bias=False)
            self.norm = nn.BatchNorm2d(channels)
            self.blocks = nn.Sequential(
                Block(channels, channels, 1),
                Block(channels, channels, 1),
                Block(channels, 2 * channels, 2),
                Block(2 * channels, 2 * channels, 1),
                Block(2 * channels, 4 * channels, 2),
                Block(4 * channels, 4 * channels, 1),
            )
            self.head = nn.Linear(4 * channels, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Images of shape (images, 1, 8, 8) in, logits of shape (images, 10) out."""
        value = self.blocks(nn.functional.relu(self.norm(self.stem(images))))
        logits: Tensor = self.head(value.mean(dim=(2, 3)))
        return logits
