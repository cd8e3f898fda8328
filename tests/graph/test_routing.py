"""Experts in a graph: three ops each, with the shapes and shares that even routing gives, by hand."""

import capabilities
import helpers
import mixtures
import pytest
import torch
import transformers
from torch import nn

import inc_mp_plugin as mp
from inc_mp_plugin.core.errors import CaptureError
from inc_mp_plugin.core.graph import Gemm, Graph, Op
from inc_mp_plugin.model.experts import expose_experts, exposed_experts
from inc_mp_plugin.runtime.codec import from_json, to_json

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
LAYER = "model.layers.1.mlp"


def experts(graph, prefix):
    return [op for op in graph.ops if op.name.startswith(f"{prefix}.experts.")]


MIXTURES = ["mixtral", "qwen3_moe", "qwen2_moe", "deepseek_v3", "gpt_oss"]


def text(samples=3, length=12):
    return {"input_ids": helpers.tokens(samples, length)}


@capabilities.fused_experts
@pytest.mark.parametrize("name", helpers.mostly_slow(MIXTURES, "mixtral", "deepseek_v3"))
def test_three_ops_per_expert_under_the_names_they_have_when_exposed(name):
    model = helpers.language_model(name)
    graph = mp.capture(model, text())
    ops = experts(graph, LAYER)
    assert [op.name for op in ops] == [f"{LAYER}.experts.{e}.{p}" for e in range(4) for p in PROJECTIONS]
    with exposed_experts(model):
        modules = {key: type(m).__name__ for key, m in model.named_modules() if ".experts." in key}
        weights = {op.name: model.get_submodule(op.name).weight.numel() for op in ops}
    assert {key: kind for key, kind in graph.modules.items() if ".experts." in key} == modules
    assert {op.name: op.weight_elements for op in ops} == weights
    assert from_json(Graph, to_json(graph)) == graph


def test_shapes_and_shares_by_hand():
    """Mixtral with 2 of 4 experts: 36 tokens send 72 rows, 18 to each; no pass leaves one out."""
    ops = experts(mp.capture(helpers.language_model("mixtral"), text(3, 12)), LAYER)
    for op in ops:
        inner, columns = (96, 64) if op.name.endswith("down_proj") else (64, 96)
        assert op.kind == "linear"
        assert op.gemms == (Gemm(1, 18, inner, columns),)
        assert op.macs == 12 * 2 * 64 * 96 // 4
        assert op.weight_elements == 64 * 96
        assert (op.calls, op.tied) == (1, False)
        assert op.share == pytest.approx(1 - 0.5**36)
        assert op.share < 1


@pytest.mark.parametrize("samples", helpers.mostly_slow([1, 2, 5, 40], 2, 40))
def test_a_decode_step_of_an_fp32_model_reaches_few_experts(samples):
    model = helpers.language_model("qwen3_moe", num_experts=16)
    graph = mp.capture(model, text(samples, 1), cached_tokens=8)
    for op in experts(graph, LAYER):
        (gemm,) = op.gemms
        assert op.share == pytest.approx(1 - (1 - 2 / 16) ** samples)
        expected = samples * 2 / 16  # rows that an expert gets on average
        assert abs(gemm.rows * op.share - expected) <= 0.5 * op.share
        assert op.macs == 2 * 64 * 32 // 16
    assert len(experts(graph, LAYER)) == 48


@capabilities.fused_experts
def test_even_routing_gives_the_share():
    """Tokens that choose experts at random leave one out as often as the share says."""
    torch.manual_seed(0)
    (op,) = {op.share for op in experts(mp.capture(helpers.language_model("mixtral"), text(3, 1)), LAYER)}
    chosen = torch.rand(20_000, 3, 4).argsort(dim=-1)[..., :2]
    reached = (chosen == 0).flatten(1).any(dim=1).double().mean().item()
    assert op == pytest.approx(reached, abs=0.01)


def test_experts_and_what_is_parallel_to_them_are_one_group():
    graph = mp.capture(helpers.language_model("qwen2_moe"), text())
    routed = {op.name for op in experts(graph, LAYER)}
    (group,) = [set(group) for group in graph.groups if routed & set(group)]
    shared = {f"{LAYER}.shared_expert.{name}" for name in PROJECTIONS} | {f"{LAYER}.shared_expert_gate"}
    assert group == routed | shared


@pytest.mark.parametrize("name", ["mixtral", "deepseek_v3"])
def test_down_waits_for_its_own_gate_and_up(name):
    graph = mp.capture(helpers.language_model(name), text())
    for op in experts(graph, LAYER):
        expert, _, projection = op.name.rpartition(".")
        expected = (f"{expert}.gate_proj", f"{expert}.up_proj") if projection == "down_proj" else ()
        assert op.after == expected


def test_what_reads_a_layer_waits_for_every_expert():
    """Two paths of different length: the longer one's ops and the experts are one group."""

    class Behind(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.beside = (nn.Linear(6, 6) for _ in range(2))
            self.block, self.behind = mixtures.Loop(), nn.Linear(6, 6)

        def forward(self, x):
            x = self.first(x)
            return self.behind(self.block(x)[0]) * self.beside(x)

    graph = mp.capture(Behind(), mixtures.inputs(2)[0])
    ops = graph.by_name
    assert ops["behind"].after == tuple(f"block.experts.{e}.w2" for e in range(4))
    assert graph.groups == (("first",), tuple(ops)[1:])
    assert ops["block.experts.0.w1"].after == ()


@capabilities.fused_experts
def test_layers_of_experts_are_alike_until_something_differs():
    graph = mp.capture(helpers.language_model("mixtral"), text())
    assert graph.structures[:3] == graph.structures[3:6]
    model = helpers.language_model("mixtral")
    layer = model.model.layers[1].mlp.experts
    layer.gate_up_proj = nn.Parameter(torch.empty(3, 192, 64))
    layer.down_proj = nn.Parameter(torch.empty(3, 64, 96))
    fewer = mp.capture(model, text())
    assert len(experts(fewer, LAYER)) == 9
    assert fewer.structures[:3] == graph.structures[:3]
    assert fewer.structures[2] != fewer.structures[5]


def test_a_layer_that_runs_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.block, self.last = mixtures.Loop(), nn.Linear(6, 6)

        def forward(self, x):
            return self.last(self.block(self.block(x)[0])[0])

    graph = mp.capture(Twice(), mixtures.inputs(2)[0])
    op = graph.by_name["block.experts.1.w1"]
    assert op.share == pytest.approx(1 - 0.5**20)
    assert (op.calls, op.gemms) == (2, (Gemm(1, 5, 6, 8),) * 2)
    assert op.macs == 2 * 5 * 2 * 6 * 8 // 4


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_experts_that_are_exposed_already(name):
    model = helpers.language_model(name)
    expected = mp.capture(model, text())
    with exposed_experts(model):
        assert mp.capture(model, text()) == expected
    expose_experts(model)
    assert mp.capture(model, text()) == expected


BLOCKS = ["Kernel", "Loop", "LoopOverAll", "LoopInMethod", "LoopBesideShared"]


@pytest.mark.parametrize("block", BLOCKS)
def test_lists_of_experts(block):
    """As transformers 4 and optimum-habana have them; nothing of this could be traced as it is."""
    model = mixtures.Model(getattr(mixtures, block))
    before = helpers.state(model)
    with mixtures.gaudi_kernel():
        graph = mp.capture(model, mixtures.inputs(3)[0])
    helpers.assert_same_state(before, helpers.state(model))
    names = [f"block.experts.{e}.{w}" for e in range(4) for w in ("w1", "w3", "w2")]
    shared = [f"block.shared_expert.{w}" for w in ("w1", "w3", "w2")] + ["block.shared_expert_gate"]
    beside = shared if block == "LoopBesideShared" else []
    assert [sorted(group) for group in graph.groups] == [["first"], sorted(names + beside), ["last"]]
    assert graph.modules == {name: type(m).__name__ for name, m in model.named_modules() if name}
    share = 1 - 0.5**15
    assert graph.by_name["block.experts.2.w2"] == Op(
        *("block.experts.2.w2", "linear", 5 * 2 * 6 * 8 // 4, 48, 1),
        gemms=(Gemm(1, round(15 * 2 / 4 / share), 8, 6),),
        after=("block.experts.2.w1", "block.experts.2.w3"),
        share=pytest.approx(share),
    )


@pytest.mark.parametrize(
    ("build", "name"),
    [
        pytest.param(
            lambda: helpers.language_model("mixtral"), f"{LAYER}.gate", marks=capabilities.fused_experts
        ),
        (lambda: mixtures.Model(mixtures.Loop), "block.gate"),
        (lambda: mixtures.Model(mixtures.Kernel), "block.gate"),
        (lambda: mixtures.Model(mixtures.LoopInMethod), "block.gate"),
    ],
    ids=["a class of its own", "loop", "kernel", "loop in a method"],
)
def test_the_router_is_no_op(build, name):
    model = build()
    batch = text() if hasattr(model, "config") else mixtures.inputs(2)[0]
    with mixtures.gaudi_kernel():
        graph = mp.capture(model, batch)
    assert name not in graph.by_name
    reasons = {product.name: product.reason for product in graph.unsupported}
    assert reasons[name].startswith("router: ")


class TwoShared(mixtures.LoopBesideShared):
    """Too much beside the experts for its data flow to be guessed."""

    def __init__(self):
        super().__init__()
        self.another = mixtures.Expert()


class TwoWays(mixtures.Loop):
    """Gives the router's scores only sometimes."""

    def forward(self, hidden):
        output = super().forward(hidden)
        if self.training:
            return output
        return output[0], None, None


class Unequal(mixtures.Loop):
    """Experts of two sizes."""

    def __init__(self):
        super().__init__()
        self.experts[1].w1 = nn.Linear(6, 6)


@pytest.mark.parametrize("block", [TwoShared, TwoWays, Unequal])
def test_a_loop_that_is_not_that_simple_is_refused(block):
    with pytest.raises(CaptureError, match="torch.export cannot trace Model"):
        mp.capture(mixtures.Model(block), mixtures.inputs(2)[0])


@capabilities.fused_experts
def test_fused_experts_that_cannot_be_exposed_are_named_with_the_reason():
    """Nemotron's have no gate; the router beside them is linear here."""
    from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHExperts

    sizes = {"hidden_size": 8, "moe_intermediate_size": 4, "n_routed_experts": 4}

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = NemotronHExperts(transformers.NemotronHConfig(**sizes))
            self.router, self.last = nn.Linear(8, 4), nn.Linear(8, 5)

        def forward(self, x):
            weights, chosen = self.router(x).topk(2)
            return self.last(self.experts(x, chosen, weights))

    graph = mp.capture(nn.Sequential(Block()), torch.randn(3, 8))
    assert [op.name for op in graph.ops] == ["0.last"]
    reasons = {product.name: product.reason for product in graph.unsupported}
    assert reasons["0.router"].startswith("router: ")
    assert "down_proj, up_proj instead of gate_up_proj" in reasons["0.experts"]


def test_experts_that_take_one_row_per_token_and_expert_by_hand():
    """Llama 4 sends each of 36 tokens to one of 4 experts: 9 rows to each, beside a shared expert."""
    graph = mp.capture(helpers.language_model("llama4_text"), text(3, 12))
    layer = "model.layers.1.feed_forward"
    ops = experts(graph, layer)
    assert [op.name for op in ops] == [f"{layer}.experts.{e}.{p}" for e in range(4) for p in PROJECTIONS]
    for op in ops:
        inner, columns = (96, 64) if op.name.endswith("down_proj") else (64, 96)
        assert op.gemms == (Gemm(1, 9, inner, columns),)
        assert op.macs == 12 * 64 * 96 // 4
        assert op.share == pytest.approx(1 - 0.75**36)
    routed = {op.name for op in ops}
    shared = {f"{layer}.shared_expert.{name}" for name in PROJECTIONS}
    assert [set(group) for group in graph.groups if routed & set(group)] == [routed | shared]
    reasons = {product.name: product.reason for product in graph.unsupported}
    assert reasons[f"{layer}.router"].startswith("router: ")


def test_a_kernel_whose_experts_differ():
    class Unlike(mixtures.Kernel):
        def __init__(self):
            super().__init__()
            self.experts[1].act = nn.SiLU()

    with mixtures.gaudi_kernel():
        graph = mp.capture(mixtures.Model(Unlike), mixtures.inputs(2)[0])
    assert [op.name for op in graph.ops] == ["first", "last"]
    reasons = {product.name: product.reason for product in graph.unsupported}
    assert "in no list" in reasons["block"]
    assert reasons["block.gate"].startswith("router: ")


def test_what_experts_consist_of_need_not_be_linear():
    class Odd(mixtures.Loop):
        def __init__(self):
            super().__init__()
            self.experts = nn.ModuleList(OddExpert() for _ in range(4))

    class OddExpert(mixtures.Expert):
        def forward(self, hidden):
            return super().forward(hidden) @ torch.eye(6, device=hidden.device)

    graph = mp.capture(mixtures.Model(Odd), mixtures.inputs(2)[0])
    assert len(experts(graph, "block")) == 12
    assert [product.name for product in graph.unsupported if "experts" in product.name] == ["block.experts.0"]


def test_autocast_is_left_alone():
    """Transformers 4 asks for autocast on the device of its inputs, which meta has not."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            with torch.autocast(device_type=x.device.type, enabled=False):
                return self.linear(x)

    before = torch.autocast
    assert [op.name for op in mp.capture(Model(), torch.randn(2, 4)).ops] == ["linear"]
    assert torch.autocast is before
