"""Make this folder: train a small Llama on Python's own standard library, from nothing but Python.

What it does, in order: collects the standard library's sources, splits them *by file* into training,
calibration and held-out text, trains a byte-level BPE tokenizer, trains the model until the held-out
loss has levelled, and writes model, tokenizer, samples and the training log beside this file.

Run (about half an hour on two cores):

    pip install -e ".[hf,inc]"
    python recipes/tiny-llama/make.py

The text differs a little between Python versions, so the result does too; training.json names the
version used.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import platform
import random
import sysconfig
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

FOLDER = Path(__file__).parent
SKIPPED = {"site-packages", "test", "tests", "idle_test", "lib2to3", "encodings", "__pycache__"}
VOCABULARY = 1024
CONTEXT = 256
SAMPLE_CHARACTERS = 1400  # enough for 256 tokens of nearly any source file
SAMPLES = {"calibration": 128, "heldout": 512}


def part_of(path: Path, root: Path) -> str:
    """Say which part a file belongs to, from a hash of its name: no text is in two parts."""
    digest = int(hashlib.sha256(path.relative_to(root).as_posix().encode()).hexdigest(), 16)
    return {0: "calibration", 1: "heldout", 2: "heldout"}.get(digest % 24, "train")


def collect() -> dict[str, list[str]]:
    """Read the standard library's Python sources, as {part: [text of a file, ...]}."""
    root = Path(sysconfig.get_paths()["stdlib"])
    texts: dict[str, list[str]] = {"train": [], "calibration": [], "heldout": []}
    for path in sorted(root.rglob("*.py")):
        if SKIPPED.isdisjoint(path.relative_to(root).parts):
            texts[part_of(path, root)].append(path.read_text(encoding="utf-8", errors="ignore"))
    return texts


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer: any text has a code, none is unknown."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")


def write_samples(
    texts: list[str], path: Path, count: int, tokenizer: PreTrainedTokenizerFast
) -> list[list[int]]:
    """Cut samples of at least CONTEXT tokens, evenly over the files; write them, return the tokens.

    They are written in random order: whoever takes the first few takes them from all files.
    """
    samples = []
    for text in texts:
        for start in range(0, len(text) - SAMPLE_CHARACTERS, SAMPLE_CHARACTERS):
            sample = text[start : start + SAMPLE_CHARACTERS]
            if len(tokenizer(sample).input_ids) >= CONTEXT:
                samples.append(sample)
    chosen = [samples[i * len(samples) // count] for i in range(count)]
    random.Random(0).shuffle(chosen)
    path.write_text("".join(json.dumps({"text": s}) + "\n" for s in chosen), encoding="utf-8")
    return [tokenizer(s).input_ids[:CONTEXT] for s in chosen]


@torch.no_grad()
def heldout_loss(model: LlamaForCausalLM, tokens: torch.Tensor) -> float:
    """Mean negative log-likelihood per token of every fourth held-out sample."""
    model.eval()
    losses = [model(input_ids=part, labels=part).loss for part in torch.split(tokens[::4], 32)]
    model.train()
    return torch.stack(losses).mean().item()


def train(
    model: LlamaForCausalLM, stream: torch.Tensor, heldout: torch.Tensor, steps: int, batch: int
) -> list[dict[str, float]]:
    """Train with AdamW, a short warm-up and a cosine to zero; return the log."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps)),
    )
    log, generator, start = [], torch.Generator().manual_seed(0), time.monotonic()
    for step in range(steps + 1):
        if step % (steps // 20) == 0:
            log.append(
                {
                    "step": step,
                    "tokens": step * batch * CONTEXT,
                    "heldout_loss": heldout_loss(model, heldout),
                }
            )
            print(f"{time.monotonic() - start:7.0f} s  {log[-1]}", flush=True)
        offsets = torch.randint(0, len(stream) - CONTEXT, (batch,), generator=generator).tolist()
        ids = torch.stack([stream[o : o + CONTEXT] for o in offsets])
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return log


def main() -> None:
    """Make everything."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=8)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    texts = collect()
    tokenizer = train_tokenizer(texts["train"])
    samples = {
        part: torch.tensor(write_samples(texts[part], FOLDER / f"{part}.jsonl", count, tokenizer))
        for part, count in SAMPLES.items()
    }
    stream = torch.tensor([i for text in texts["train"] for i in [*tokenizer(text).input_ids, 0]])
    print(
        {part: len(files) for part, files in texts.items()},
        f"{len(stream)} training tokens",
        flush=True,
    )
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    log = train(model, stream, samples["heldout"], arguments.steps, arguments.batch)
    model.to(torch.bfloat16).save_pretrained(FOLDER)  # as models are published; the recipe loads it in FP32
    tokenizer.model_max_length = CONTEXT
    tokenizer.save_pretrained(FOLDER)
    settings = FOLDER / "tokenizer_config.json"  # transformers 4 does not know the class that 5 writes there
    settings.write_text(settings.read_text().replace("TokenizersBackend", "PreTrainedTokenizerFast"))
    facts = {"python": platform.python_version(), "training_tokens": len(stream), "log": log}
    (FOLDER / "training.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
