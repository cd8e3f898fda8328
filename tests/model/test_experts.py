"""Exposed experts: the same logits, weights without a copy, and gone afterwards."""

import re
from itertools import product

import helpers
import pytest
import torch
import transformers
from torch import nn

try:
    from transformers.integrations.moe import use_experts_implementation
except ImportError:
    pytest.skip("transformers keeps experts as lists of modules", allow_module_level=True)

from inc_mp_plugin.model.expert import Sent, routed
from inc_mp_plugin.model.experts import expose_experts, exposed_experts, fused_experts

MIXTURES = ["mixtral", "qwen3_moe", "qwen2_moe", "deepseek_v3", "gpt_oss"]
KERNELS = ["eager", "batched_mm", "grouped_mm"]
MORE = [("llama4_text", "eager"), *((name, "grouped_mm") for name in ("qwen3_next", "granitemoe", "olmoe"))]
BLOCKS = {"granitemoe": "block_sparse_moe", "llama4_text": "feed_forward"}
LAYER = "model.layers.1.mlp.experts"


def batch():
    ids = helpers.tokens(3)
    mask = torch.ones_like(ids)
    mask[1, 8:] = 0
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("name", "kernel"), [*product(MIXTURES, KERNELS), *MORE])
def test_logits_are_those_of_every_kernel(name, kernel, dtype):
    model = helpers.mixture(name, _experts_implementation=kernel).to(dtype)
    expected = model(**batch()).logits
    with exposed_experts(model) as exposed:
        logits = model(**batch()).logits
    assert f"model.layers.1.{BLOCKS.get(name, 'mlp')}.experts" in exposed
    tolerance = 1e-5 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(logits, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))
    for key, parameter in model.named_parameters():
        if key.endswith(("experts.down_proj", "experts.down_proj_bias")):
            parameter.zero_()
    # Without experts the logits are others: the comparison means something.
    assert (model(**batch()).logits - expected).abs().max() > 0.2 * expected.abs().max()


@torch.no_grad()
def test_generation_with_a_cache_is_the_same():
    model = helpers.mixture("qwen3_moe")
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(helpers.tokens(2), **options)
    with exposed_experts(model):
        assert torch.equal(model.generate(helpers.tokens(2), **options), expected)


def test_names_and_weights_are_views():
    model = helpers.mixture("mixtral")
    layer = model.get_submodule(LAYER)
    gate_up, down = layer.gate_up_proj, layer.down_proj
    with exposed_experts(model):
        kinds = {name: type(m).__name__ for name, m in layer.named_modules() if "." in name}
        expert = layer.get_submodule("2")
        assert torch.equal(expert.gate_proj.weight, gate_up[2, :96])
        assert torch.equal(expert.up_proj.weight, gate_up[2, 96:])
        assert torch.equal(expert.down_proj.weight, down[2])
        for projection in expert.children():
            stack = down if projection is expert.down_proj else gate_up
            assert projection.weight.untyped_storage().data_ptr() == stack.untyped_storage().data_ptr()
    projections = ("gate_proj", "up_proj", "down_proj")
    assert kinds == {f"{number}.{name}": "Linear" for number in range(4) for name in projections}


def test_views_of_transposed_and_interleaved_stacks_with_biases():
    model = helpers.mixture("gpt_oss")
    layer = model.get_submodule(LAYER)
    stacks = dict(layer.named_parameters(recurse=False))
    with exposed_experts(model):
        expert = layer.get_submodule("2")
        for start, projection in enumerate((expert.gate_proj, expert.up_proj)):
            assert torch.equal(projection.weight, stacks["gate_up_proj"][2, :, start::2].T)
            assert torch.equal(projection.bias, stacks["gate_up_proj_bias"][2, start::2])
        assert torch.equal(expert.down_proj.weight, stacks["down_proj"][2].T)
        assert torch.equal(expert.down_proj.bias, stacks["down_proj_bias"][2])
        places = {parameter.untyped_storage().data_ptr() for parameter in expert.parameters()}
    assert places == {stack.untyped_storage().data_ptr() for stack in stacks.values()}


@pytest.mark.parametrize("name", ["mixtral", "llama", "gpt_oss", "llama4_text"])
def test_the_model_leaves_as_it_came(name):
    model = helpers.language_model(name)
    before = helpers.state(model)
    with exposed_experts(model):
        pass
    helpers.assert_same_state(before, helpers.state(model))
    with pytest.raises(KeyboardInterrupt), exposed_experts(model):
        raise KeyboardInterrupt
    helpers.assert_same_state(before, helpers.state(model))


@torch.no_grad()
@pytest.mark.parametrize(("name", "layers"), [("deepseek_v3", 1), ("gpt_oss", 2)])
def test_exposed_for_good_without_a_second_copy(name, layers):
    model = helpers.mixture(name)
    expected, elements = model(**batch()).logits, sum(p.numel() for p in model.parameters())
    exposed = expose_experts(model)
    assert (len(exposed), exposed[-1]) == (layers, LAYER)
    assert expose_experts(model) == ()
    with exposed_experts(model) as exposed:
        assert exposed == ()
    torch.testing.assert_close(model(**batch()).logits, expected)
    assert sum(p.numel() for p in model.parameters()) == elements
    assert f"{LAYER}.3.up_proj.weight" in model.state_dict()
    assert not [key for key in model.state_dict() if key.startswith(f"{LAYER}.gate_up_proj")]
    for own in model.get_submodule(f"{LAYER}.3").parameters():
        assert own.is_contiguous()
        assert own.untyped_storage().nbytes() == 4 * own.numel()


def gpt_oss():
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

    config = transformers.GptOssConfig(hidden_size=8, intermediate_size=8, num_local_experts=2)
    return GptOssExperts(config)


def aria():
    from transformers.models.aria.modeling_aria import AriaExperts, AriaTextConfig

    sizes = {"hidden_size": 8, "intermediate_size": 6, "num_attention_heads": 2}
    return AriaExperts(AriaTextConfig(**sizes, moe_num_experts=2))


def nemotron():
    from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHExperts

    config = transformers.NemotronHConfig(hidden_size=8, moe_intermediate_size=4, n_routed_experts=2)
    return NemotronHExperts(config)


class Scaled(nn.Module):
    """Fused experts, of which one does more than others do: it scales what it gets."""

    def __init__(self, config, factor=1.0, limit=float("inf")):
        super().__init__()
        self.num_experts, self.factor, self.limit = 2, factor, limit
        self.gate_up_proj = nn.Parameter(torch.randn(2, 12, 8))
        self.down_proj = nn.Parameter(torch.randn(2, 8, 6))

    def _apply_gate(self, both):
        gate, up = both.chunk(2, dim=-1)
        return torch.sigmoid(gate.clamp(max=self.limit)) * up

    def forward(self, hidden_states, top_k_index, top_k_weights):
        output = torch.zeros_like(hidden_states)
        for number in range(self.num_experts):
            token, place = torch.where(top_k_index == number)
            both = nn.functional.linear(self.factor * hidden_states[token], self.gate_up_proj[number])
            rows = nn.functional.linear(self._apply_gate(both), self.down_proj[number])
            output.index_add_(0, token, rows * top_k_weights[token, place, None])
        return output


class TakesTurns(Scaled):
    """Gate and up take turns."""

    def _apply_gate(self, both):
        return torch.sigmoid(both[..., ::2]) * both[..., 1::2]


def uneven(name, *shape):
    experts = Fused(config())
    setattr(experts, name, nn.Parameter(torch.randn(shape)))
    return experts


Fused = use_experts_implementation(type("Fused", (Scaled,), {}))
Interleaved = use_experts_implementation(type("Interleaved", (TakesTurns,), {}), is_concatenated=False)


def config():
    return transformers.MixtralConfig(experts_implementation="eager")


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (gpt_oss, "^$"),
        (aria, "^$"),
        (nemotron, "down_proj, up_proj instead of gate_up_proj and down_proj, and biases of both or none"),
        (lambda: Interleaved(config()), "^$"),
        (lambda: uneven("down_proj", 8, 6), r"do not fit each other: .*down_proj.*\(8, 6\)"),
        (
            lambda: uneven("gate_up_proj", 2, 13, 8),
            r"parameters do not fit each other: .*gate_up_proj.*\(2, 13, 8\)",
        ),
        (lambda: Fused(config(), factor=0.5), r"do not compute down\(gate\(x\), up\(x\)\)"),
        (lambda: Fused(config(), limit=0.5), "^$"),
    ],
    ids=[
        "biases",
        "transposed",
        "no gate",
        "interleaved",
        "flat",
        "uneven",
        "something else",
        "a gate of its own",
    ],
)
def test_only_what_computes_the_same_is_exposed(build, reason):
    torch.manual_seed(0)
    model = nn.Sequential(build())
    ((name, why),) = fused_experts(model).items()
    assert name == "0"
    assert re.search(reason, why)
    with exposed_experts(model) as exposed:
        assert exposed == (("0",) if not why else ())


@torch.no_grad()
@pytest.mark.parametrize(
    "build", [lambda: Fused(config(), limit=0.5), lambda: Interleaved(config())], ids=["clamp", "turns"]
)
def test_a_gate_of_its_own_is_kept(build):
    torch.manual_seed(0)
    model = nn.Sequential(build())
    arguments = (torch.randn(5, 8), torch.tensor([[0, 1]] * 5), torch.rand(5, 2))
    expected = model[0](*arguments)
    with exposed_experts(model):
        torch.testing.assert_close(model[0](*arguments), expected)


def test_routed_by_hand():
    """Expert e multiplies by e + 1; expert 2 is elsewhere."""
    hidden = torch.tensor([[1.0], [10.0], [100.0]])
    chosen = torch.tensor([[0, 1], [2, 1], [2, 2]])
    weights = torch.tensor([[1.0, 0.5], [1.0, 2.0], [1.0, 1.0]])
    seen = {}

    def run(number, rows):
        seen[number] = rows.flatten().tolist()
        return (number + 1) * rows

    sent = Sent.by_number(chosen, weights, range(2))
    assert routed(hidden, sent, run).tolist() == [[2.0], [40.0], [0.0]]
    assert seen == {0: [1.0], 1: [1.0, 10.0]}


def test_rows_by_their_places_by_hand():
    """Two experts, two tokens: token 1 goes to both, token 0 to the second expert alone."""
    hidden = torch.tensor([[0.0], [2.0], [3.0], [4.0]])
    sent = Sent.by_place(hidden, 2)
    assert (sent.source.tolist(), sent.tokens, sent.counts) == ([1, 2, 3], 2, {0: 1, 1: 2})
    assert routed(hidden, sent, lambda number, rows: (number + 10) * rows).flatten().tolist() == [
        0,
        20,
        33,
        44,
    ]
    assert routed(0 * hidden, Sent.by_place(0 * hidden, 2), max).tolist() == [[0.0]] * 4
