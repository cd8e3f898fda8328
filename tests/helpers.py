"""Small models of many architectures, and what else several tests need."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
import transformers
import typer.testing
from torch import nn

from inc_mp_plugin.cli.main import app
from inc_mp_plugin.model.attention import Matmul

SHIPPED = Path(__file__).parent.parent / "recipes" / "tiny-llama"

# Since version 5, transformers stacks the weights of experts, and puts weights on a disk by `device_map`.
OLD_TRANSFORMERS = int(transformers.__version__.partition(".")[0]) < 5
since_5 = pytest.mark.skipif(OLD_TRANSFORMERS, reason="transformers 5 does it otherwise")

VOCABULARY = 96
_SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": VOCABULARY,
}
_GROUPED = {**_SIZES, "num_key_value_heads": 2}
_GROUPED_EXPERTS = {**_GROUPED, "intermediate_size": 32, "num_experts_per_tok": 2}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}

# One small configuration per architecture; sizes do not matter, structures do.
CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**_GROUPED),
    "qwen3": lambda: transformers.Qwen3Config(**_GROUPED, head_dim=16),
    "mistral": lambda: transformers.MistralConfig(**_GROUPED),
    "mixtral": lambda: transformers.MixtralConfig(**_GROUPED, num_local_experts=4),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(**_GROUPED, **_EXPERTS, head_dim=16),
    "qwen2_moe": lambda: transformers.Qwen2MoeConfig(
        **_GROUPED, **_EXPERTS, shared_expert_intermediate_size=48
    ),
    "gemma3": lambda: transformers.Gemma3TextConfig(**_GROUPED, head_dim=16),
    "phi3": lambda: transformers.Phi3Config(**_GROUPED, pad_token_id=0),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**_SIZES),
    "gpt2": lambda: transformers.GPT2Config(
        n_embd=64, n_layer=2, n_head=4, vocab_size=VOCABULARY, bos_token_id=0, eos_token_id=0
    ),
    "opt": lambda: transformers.OPTConfig(
        hidden_size=64,
        ffn_dim=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=VOCABULARY,
        word_embed_proj_dim=64,
        max_position_embeddings=64,
    ),
    "falcon": lambda: transformers.FalconConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=VOCABULARY,
        bos_token_id=0,
        eos_token_id=0,
    ),
    "deepseek_v3": lambda: transformers.DeepseekV3Config(
        **_SIZES,
        num_key_value_heads=4,
        n_routed_experts=4,
        moe_intermediate_size=32,
        n_group=2,
        topk_group=1,
        num_experts_per_tok=2,
        first_k_dense_replace=1,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=16,
    ),
}

# More mixtures of experts, for tests of experts alone.
MIXTURES = {
    "gpt_oss": lambda: transformers.GptOssConfig(
        **_GROUPED_EXPERTS, num_local_experts=4, head_dim=16, sliding_window=8
    ),
    "llama4_text": lambda: transformers.Llama4TextConfig(
        **_GROUPED, num_local_experts=4, intermediate_size_mlp=48, head_dim=16, interleave_moe_layer_step=1
    ),
    "qwen3_next": lambda: transformers.Qwen3NextConfig(
        **_GROUPED,
        **_EXPERTS,
        shared_expert_intermediate_size=48,
        head_dim=16,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
        layer_types=["linear_attention", "full_attention"],
    ),
    "granitemoe": lambda: transformers.GraniteMoeConfig(**_GROUPED_EXPERTS, num_local_experts=4),
    "olmoe": lambda: transformers.OlmoeConfig(**_GROUPED_EXPERTS, num_experts=4, eos_token_id=1),
}


def language_model(name: str, seed: int = 0, **changes: object) -> nn.Module:
    """A small causal language model of random weights."""
    config = {**CONFIGS, **MIXTURES}[name]()
    for key, value in changes.items():
        setattr(config, key, value)
    torch.manual_seed(seed)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def mixture(name: str, **changes: object) -> nn.Module:
    """A small model whose routed experts weigh as much as anything else in it."""
    model = language_model(name, **changes)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if any(part in key for part in (".experts.", ".mlp.gate.", ".router.")):
                parameter.normal_(std=0.2)
    return model


def encoder(seed: int = 0) -> nn.Module:
    """A small BERT that classifies."""
    torch.manual_seed(seed)
    config = transformers.BertConfig(**_SIZES, num_labels=3)
    return transformers.AutoModelForSequenceClassification.from_config(config).eval()


def classification_loss(model: nn.Module, batch: dict) -> torch.Tensor:
    """Cross entropy per sample: what an encoder's user passes as loss_fn."""
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    logits = model(**inputs).logits
    return nn.functional.cross_entropy(logits, batch["labels"], reduction="none")


def tokens(samples: int, length: int = 12, seed: int = 0) -> torch.Tensor:
    """Random tokens of shape (samples, length)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCABULARY, (samples, length), generator=generator)


class ResidualCNN(nn.Module):
    """Convolutions of several kinds around a residual edge, pooled into classes."""

    def __init__(self, padding_mode: str = "zeros") -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1, padding_mode=padding_mode)
        self.second = nn.Conv2d(8, 8, 3, padding="same", groups=4)
        self.down = nn.Conv2d(8, 12, 3, stride=2, padding=1, dilation=2)
        self.head = nn.Linear(12, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(images))
        x = x + torch.relu(self.second(x))
        return self.head(self.down(x).mean(dim=(2, 3)))


class HandWritten(nn.Module):
    """Two branches from one input, a product of activations, and a module called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 6), nn.Linear(6, 6)
        self.product = Matmul()
        self.again = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mixed = self.product(self.left(x), self.right(x).transpose(-1, -2)) @ x
        return self.again(torch.tanh(self.again(mixed)))


class Scaled(nn.Module):
    """A block: a linear layer, scaled."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, scale: float) -> torch.Tensor:
        return torch.tanh(self.inner(x)) * scale


class RoutedExperts(nn.Module):
    """Tokens of all samples are sorted to one of two experts: rows mix samples."""

    def __init__(self):
        super().__init__()
        self.router = nn.Linear(6, 2)
        self.experts = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))

    def forward(self, x):
        tokens = x.reshape(-1, 6)
        choice = self.router(tokens).argmax(dim=1)
        out = torch.zeros_like(tokens)
        for i, expert in enumerate(self.experts):
            rows = (choice == i).nonzero().flatten()
            out = out.index_add(0, rows, expert(tokens[rows]))
        return out.view_as(x)


def squared_loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    """Mean square of the output, per sample."""
    return model(batch).square().flatten(1).mean(dim=1)


def state(model: nn.Module) -> dict:
    """All that a user could notice of a model: weights, flags, hooks, classes."""
    return {
        "weights": {k: v.clone() for k, v in model.state_dict().items()},
        "trainable": [(n, p.requires_grad, p.grad is None) for n, p in model.named_parameters()],
        "training": [(n, m.training) for n, m in model.named_modules()],
        "classes": [(n, type(m)) for n, m in model.named_modules()],
        "hooks": [
            (n, len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
            for n, m in model.named_modules()
        ],
        "attributes": [(n, sorted(vars(m))) for n, m in model.named_modules()],
        "attention": getattr(getattr(model, "config", None), "_attn_implementation", None),
    }


def assert_same_state(before: dict, after: dict) -> None:
    """Compare two states, weights bit by bit."""
    weights, others = before["weights"], after["weights"]
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[key], others[key]) for key in weights)
    for key in before.keys() - {"weights"}:
        assert before[key] == after[key], key


def summed_loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    """Sum of the output, per sample."""
    return model(batch).flatten(1).sum(dim=1)


def small_config() -> transformers.LlamaConfig:
    """A Llama of two small layers, with the shipped tokenizer's vocabulary."""
    return transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=1024,
        max_position_embeddings=64,
    )


def small_project(folder: Path) -> Path:
    """A small model of random weights with the shipped tokenizer, data and a recipe, in a folder."""
    transformers.set_seed(0)
    transformers.LlamaForCausalLM(small_config()).save_pretrained(folder / "model")
    transformers.AutoTokenizer.from_pretrained(SHIPPED).save_pretrained(folder / "model")
    for name in ("calibration", "heldout"):
        lines = (SHIPPED / f"{name}.jsonl").read_text().splitlines()[:8]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    (folder / "recipe.yaml").write_text(
        f"""
model: {{name_or_path: {folder}/model, dtype: fp32}}
calibration:
  {{data: {folder}/calibration.jsonl, samples: 6, sequence_length: 32, batch_size: 2}}
formats: [fp8_e4m3]
tau: 0.00012
targets: [cpu-qdq, optimum-habana]
validation: {{data: {folder}/heldout.jsonl, samples: 4, random_plans: 5}}
"""
    )
    return folder


def call(*arguments: object) -> typer.testing.Result:
    """Run a command of `inc-mp` in this process."""
    return typer.testing.CliRunner().invoke(app, [str(argument) for argument in arguments])


def read(folder: Path, name: str) -> dict:
    """Content of a JSON file in a folder."""
    return json.loads((folder / name).read_text())


def told(result: typer.testing.Result) -> str:
    """All that a command printed, as one line."""
    return " ".join(result.output.split())


def mostly_slow(cases: Iterable[object], *quick: object) -> list[object]:
    """Cases of a parametrized test, all but these marked slow: the quick ones stand for the others."""
    return [case if case in quick else pytest.param(case, marks=pytest.mark.slow) for case in cases]
