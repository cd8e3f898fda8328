"""Tiny models of six architectures, as transformers has them and as optimum-habana replaces them.

Importing this module turns transformers into optimum-habana's, once and for the whole process. Stock models
are built before, because afterwards transformers' own classes put Gaudi modules into themselves; and without
AutoModel, which would remember their classes.
"""

import copy
import functools
import importlib

import torch
import transformers
from torch import nn

NAMES = ("llama", "qwen2", "qwen3", "mistral", "mixtral", "qwen3_moe")
VOCABULARY = 64
LAYERS = 2
EXPERTS = 4

_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    # Large enough that attention is far from uniform and experts are chosen clearly.
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_MORE = {
    "qwen3": {"head_dim": 8},
    "mixtral": {"num_local_experts": EXPERTS, "num_experts_per_tok": 2},
    "qwen3_moe": {
        "head_dim": 8,
        "num_experts": EXPERTS,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "norm_topk_prob": True,
    },
}


def _config(name: str) -> transformers.PretrainedConfig:
    return transformers.AutoConfig.for_model(name, **_SIZES, **_MORE.get(name, {}))


def _stock(name: str) -> nn.Module:
    torch.manual_seed(NAMES.index(name))
    module = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
    (found,) = (cls for cls in vars(module) if cls.endswith("ForCausalLM"))
    config = _config(name)
    config._attn_implementation = "eager"
    return getattr(module, found)(config).eval()


def prompts() -> dict[str, torch.Tensor]:
    """Two prompts of 8 and 5 tokens, padded on the left as for generation."""
    generator = torch.Generator().manual_seed(7)
    tokens = torch.randint(3, VOCABULARY, (2, 8), generator=generator)
    mask = torch.ones_like(tokens)
    mask[1, :3] = 0
    return {"input_ids": tokens * mask, "attention_mask": mask}


_STOCK = {name: _stock(name) for name in NAMES}
with torch.no_grad():
    # What transformers computes before optimum-habana replaces its functions.
    _STOCK_LOGITS = {name: model(**prompts()).logits for name, model in _STOCK.items()}


def _use_given_positions(name: str) -> None:
    """optimum-habana 1.21.2 takes the first cosines instead of those of the positions, off Gaudi only."""
    module = importlib.import_module(f"optimum.habana.transformers.models.{name}.modeling_{name}")
    rotate = module.apply_rotary_pos_emb

    def apply_customized_rope(q, k, cos, sin, position_ids, training=True):
        return rotate(q, k, cos[position_ids], sin[position_ids])

    module.apply_customized_rope = apply_customized_rope


def _adapt() -> None:
    from optimum.habana.transformers.modeling_utils import adapt_transformers_to_gaudi

    adapt_transformers_to_gaudi()
    for name in ("mistral", "mixtral"):
        _use_given_positions(name)


_adapt()


def stock(name: str) -> nn.Module:
    """The model of transformers' own classes, in float32, with its own weights."""
    return copy.deepcopy(_STOCK[name])


def stock_logits(name: str) -> torch.Tensor:
    """Logits of the stock model for `prompts()`, computed before optimum-habana changed transformers."""
    return _STOCK_LOGITS[name]


@functools.cache
def _gaudi(name: str, dtype: torch.dtype) -> nn.Module:
    config = _config(name)
    config.torch_dtype = dtype  # what from_pretrained would note; key and value caches are of this type
    model = transformers.AutoModelForCausalLM.from_config(config, torch_dtype=dtype)
    model.load_state_dict(_STOCK[name].state_dict())
    return model.eval()


def gaudi(name: str, dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    """The model of optimum-habana's classes with the stock model's weights, a copy of its own."""
    return copy.deepcopy(_gaudi(name, dtype))
