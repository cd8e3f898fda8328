"""Train a small mixture of experts with a router of its own, on the text that tiny-llama was trained on.

A Mixtral of eight experts per layer, of which the router chooses two for each token; 3.2 million weights. The
tokenizer, the split into training and held-out text and the training are those of recipes/tiny-llama/make.py;
in training, the loss that keeps the load of each layer's experts balanced is added. Beside the model,
training.json says what it learned: perplexity on held-out text, beside that of the tokens' frequencies alone,
and the share of the routed tokens that each expert of each layer gets.

Run (a quarter of an hour on one core; the weights are not part of the repository):

    pip install -e ".[hf,inc]"
    python recipes/tiny-moe/train.py --out runs/tiny-moe
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, MixtralConfig, MixtralForCausalLM
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

TINY_LLAMA = Path(__file__).parent.parent / "tiny-llama"
sys.path.insert(0, str(TINY_LLAMA))

from make import CONTEXT, VOCABULARY, collect, heldout_loss, train  # noqa: E402

EXPERTS, CHOSEN = 8, 2
LOAD_WEIGHT = 0.01


def build() -> MixtralForCausalLM:
    """Build the model, with random weights."""
    config = MixtralConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=224,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=EXPERTS,
        num_experts_per_tok=CHOSEN,
        router_aux_loss_coef=0.0,  # see Balanced
        max_position_embeddings=CONTEXT,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    return MixtralForCausalLM(config)


class Balanced(nn.Module):
    """A model in training, whose loss keeps the load of every layer's experts balanced.

    The loss that transformers itself would add is of the load over all layers together. With it, two or three
    experts of eight got no token in three of four layers.
    """

    def __init__(self, model: MixtralForCausalLM) -> None:
        """Take the model."""
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, labels: Tensor) -> Any:
        """Run the model; only in training, the load counts."""
        output = self.model(input_ids=input_ids, labels=labels, output_router_logits=self.training)
        if self.training:
            loads = [load_balancing_loss_func((layer,), EXPERTS, CHOSEN) for layer in output.router_logits]
            output.loss = output.loss + LOAD_WEIGHT * torch.stack(loads).sum()
        return output


def tokens_of(part: str, tokenizer: Any) -> Tensor:
    """Read the samples of tiny-llama's calibration or held-out text, shape (samples, CONTEXT)."""
    lines = (TINY_LLAMA / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()
    return torch.tensor([tokenizer(json.loads(line)["text"]).input_ids[:CONTEXT] for line in lines])


def unigram_perplexity(stream: Tensor, tokens: Tensor) -> float:
    """Compute the perplexity of predicted tokens by their frequencies in the training text."""
    counts = torch.bincount(stream, minlength=VOCABULARY).double() + 1.0  # what was never seen is possible
    frequencies = counts / counts.sum()
    return math.exp(-frequencies.log()[tokens[::4, 1:]].mean().item())


@torch.no_grad()
def expert_shares(model: MixtralForCausalLM, tokens: Tensor) -> list[list[float]]:
    """Compute the share of the routed tokens that goes to each expert, by layer."""
    model.eval()
    counts = torch.zeros(model.config.num_hidden_layers, EXPERTS)
    for part in torch.split(tokens[::4], 32):
        output = model(input_ids=part, output_router_logits=True)
        for layer, logits in enumerate(output.router_logits):
            chosen = logits.topk(CHOSEN, dim=-1).indices
            counts[layer] += torch.bincount(chosen.flatten(), minlength=EXPERTS)
    shares: list[list[float]] = (counts / counts.sum(dim=1, keepdim=True)).tolist()
    return shares


def main() -> None:
    """Train, and write the model with what it learned."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the model")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch", type=int, default=8)
    options = parser.parse_args()
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(TINY_LLAMA)
    stream = torch.tensor([i for text in collect()["train"] for i in [*tokenizer(text).input_ids, 0]])
    heldout = tokens_of("heldout", tokenizer)
    model = build()
    log = train(Balanced(model), stream, heldout, options.steps, options.batch)
    learned, chance = math.exp(heldout_loss(model, heldout)), unigram_perplexity(stream, heldout)
    shares = expert_shares(model, heldout)
    facts = {
        "python": platform.python_version(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "training_tokens": len(stream),
        "heldout_perplexity": learned,
        "unigram_perplexity": chance,
        "expert_shares": shares,
        "log": log,
    }
    model.to(torch.bfloat16).save_pretrained(options.out)  # as models are published
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY_LLAMA / name, options.out)
    (options.out / "training.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(f"perplexity {learned:.1f}, of frequencies {chance:.1f}")
    for layer, row in enumerate(shares):
        print(f"layer {layer}: " + " ".join(f"{share:.3f}" for share in row))


if __name__ == "__main__":
    main()
