"""Held-out samples of a language model, and what a plan changes in them; the arguments of two benchmarks."""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import transformers
from torch import Tensor, nn

import inc_mp_plugin as mp
from inc_mp_plugin.model.modes import as_measured
from inc_mp_plugin.sensitivity.rounded import rounded
from inc_mp_plugin.sensitivity.rounding import Rounding

FP8 = "fp8_e4m3"
SCALES = mp.Scales("maxabs_arbitrary", "cpu")


class Change(NamedTuple):
    """What a plan changes in each sample: KL divergence, nats per token, and the loss."""

    kl: np.ndarray
    loss: np.ndarray


@dataclass(frozen=True)
class HeldOut:
    """Samples of one length, and the base model's log-probabilities of their tokens."""

    model: nn.Module
    rounding: Rounding
    samples: Tensor
    base: Tensor
    batch: int

    @staticmethod
    def of(
        model: nn.Module,
        rounding: Rounding,
        samples: Tensor,
        batch: int,
        around: AbstractContextManager[object] | None = None,
    ) -> HeldOut:
        """Run the base model; `around` is entered meanwhile."""
        with as_measured(model), around or nullcontext(), torch.no_grad():
            base = [log_probabilities(model, tokens) for tokens in samples.split(batch)]
        return HeldOut(model, rounding, samples, torch.cat(base), batch)

    def change(
        self,
        ops: Collection[str],
        rows: np.ndarray | None = None,
        around: AbstractContextManager[object] | None = None,
    ) -> Change:
        """Measure the model with these ops rounded, on some samples or all; `around` is entered meanwhile."""
        taken = torch.arange(len(self.samples)) if rows is None else torch.from_numpy(rows)
        kl, loss = [], []
        formats = dict.fromkeys(ops, FP8)
        lowered = rounded(self.model, self.rounding, formats)
        with as_measured(self.model), around or nullcontext(), lowered, torch.no_grad():
            for part in taken.split(self.batch):
                base, tokens = self.base[part], self.samples[part]
                change = base - log_probabilities(self.model, tokens)
                kl.append((base.exp() * change).sum(dim=2).mean(dim=1))
                loss.append(change.gather(2, tokens[:, 1:, None]).squeeze(2).mean(dim=1))
        return Change(torch.cat(kl).numpy(), torch.cat(loss).numpy())


def log_probabilities(model: nn.Module, tokens: Tensor) -> Tensor:
    """Predict every token but the first, in FP64: small KL divergences are differences of large numbers."""
    return model(input_ids=tokens, use_cache=False).logits[:, :-1].double().log_softmax(dim=-1)


def samples_of(path: str, count: int, options: argparse.Namespace) -> Tensor:
    """Read samples of full length, shape (samples, tokens)."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)
    texts = (json.loads(line)["text"] for line in Path(path).read_text(encoding="utf-8").splitlines())
    rows = (tokenizer(text).input_ids[: options.tokens] for text in texts)
    return torch.tensor([row for row in rows if len(row) == options.tokens][:count])


def parser_of(text: str | None, *, samples: int, fresh: int) -> argparse.ArgumentParser:
    """Prepare the arguments that both benchmarks take."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawTextHelpFormatter)
    for name in ("model", "calibration", "heldout"):
        parser.add_argument(name)
    parser.add_argument("--samples", type=int, default=samples, help="of calibration")
    parser.add_argument("--fresh", type=int, default=fresh, help="that plans are measured on")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    return parser


def load(path: str) -> nn.Module:
    """Load the model in FP32."""
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
