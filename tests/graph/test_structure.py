"""Shapes, order and likeness of groups; decode steps against what a real step multiplies."""

import helpers
import networkx
import pytest
import torch

import inc_mp_plugin as mp
from inc_mp_plugin.core.errors import CaptureError, InputError
from inc_mp_plugin.core.graph import Gemm
from inc_mp_plugin.model.attention import exposed_bgemms

MIXTURES = {"mixtral", "qwen3_moe", "qwen2_moe", "deepseek_v3"}
DECODERS = sorted(set(helpers.CONFIGS) - MIXTURES)


def real_gemms(model, run):
    """Shapes that linear layers and attention products really see, by hooks."""
    seen = {}

    def linear(name):
        def hook(module, inputs, output):
            rows = inputs[0].numel() // inputs[0].shape[-1]
            seen.setdefault(name, []).append(Gemm(1, rows, inputs[0].shape[-1], output.shape[-1]))

        return hook

    def product(name):
        def hook(module, inputs, output):
            batch = inputs[1].shape[:-2].numel()
            rows = output.numel() // output.shape[-1] // batch
            seen.setdefault(name, []).append(Gemm(batch, rows, inputs[0].shape[-1], output.shape[-1]))

        return hook

    handles = []
    for name, module in model.named_modules():
        kind = type(module).__name__
        if kind in {"Linear", "FalconLinear", "Matmul"}:
            hook = product(name) if kind == "Matmul" else linear(name)
            handles.append(module.register_forward_hook(hook))
    with torch.no_grad():
        run()
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("name", helpers.mostly_slow(helpers.CONFIGS, "llama", "falcon", "mixtral"))
def test_shapes_give_the_macs(name):
    graph = mp.capture(helpers.language_model(name), {"input_ids": helpers.tokens(3)})
    for op in graph.ops:
        assert len(op.gemms) == op.calls
        # Rows of an expert are those of the passes that reach it.
        assert sum(gemm.macs for gemm in op.gemms) * op.share == pytest.approx(3 * op.macs)


@pytest.mark.parametrize("name", helpers.mostly_slow(DECODERS, "llama", "gemma3"))
def test_shapes_of_a_prompt_are_those_of_a_real_one(name):
    model = helpers.language_model(name)
    batch = {"input_ids": helpers.tokens(2)}
    graph = mp.capture(model, batch)
    with exposed_bgemms(model):
        seen = real_gemms(model, lambda: model(**batch, use_cache=False))
    assert {op.name: list(op.gemms) for op in graph.ops} == {op.name: seen[op.name] for op in graph.ops}


@pytest.mark.parametrize("name", helpers.mostly_slow(DECODERS, "llama", "gemma3"))
def test_shapes_of_a_decode_step_are_those_of_a_real_one(name):
    model = helpers.language_model(name)
    ids = helpers.tokens(2)
    graph = mp.capture(model, {"input_ids": ids[:, :1]}, cached_tokens=12)
    with exposed_bgemms(model):
        cache = model(input_ids=ids, use_cache=True).past_key_values
        step = {"input_ids": ids[:, :1], "past_key_values": cache, "use_cache": True}
        seen = real_gemms(model, lambda: model(**step))
    assert {op.name: list(op.gemms) for op in graph.ops} == {op.name: seen[op.name] for op in graph.ops}
    assert graph.groups == mp.capture(model, {"input_ids": ids}).groups


def test_a_convolution_is_a_product_of_unfolded_patches():
    graph = mp.capture(torch.nn.Sequential(torch.nn.Conv2d(4, 6, 3, groups=2)), torch.zeros(5, 4, 8, 8))
    assert graph.ops[0].gemms == (Gemm(2, 5 * 36, 2 * 9, 3),)


def test_order_inside_a_llama_layer():
    graph = mp.capture(helpers.language_model("llama"), {"input_ids": helpers.tokens(1)})
    after = {
        op.name.rpartition(".")[2]: [other.rpartition(".")[2] for other in op.after]
        for op in graph.ops
        if ".1." in op.name
    }
    assert after == {
        "q_proj": [],
        "k_proj": [],
        "v_proj": [],
        "matmul_qk": ["q_proj", "k_proj"],
        "matmul_av": ["v_proj", "matmul_qk"],
        "o_proj": [],
        "gate_proj": [],
        "up_proj": [],
        "down_proj": [],
    }


@pytest.mark.parametrize("name", helpers.mostly_slow(helpers.CONFIGS, "llama", "falcon", "mixtral"))
def test_ops_wait_only_for_earlier_ones_of_their_group(name):
    graph = mp.capture(helpers.language_model(name), {"input_ids": helpers.tokens(1)})
    order = networkx.DiGraph()
    for group in graph.groups:
        for op in group:
            assert set(graph.by_name[op].after) <= set(group)
            order.add_edges_from((other, op) for other in graph.by_name[op].after)
    assert networkx.is_directed_acyclic_graph(order)


def test_layers_are_alike_until_something_differs():
    batch = {"input_ids": helpers.tokens(1)}
    graph = mp.capture(helpers.language_model("llama"), batch)
    layers = {tuple(graph.structures[index : index + 4]) for index in (0, 4)}
    assert len(layers) == 1
    assert len(set(graph.structures)) == 5  # attention, o, gate and up, down, head
    model = helpers.language_model("llama")
    wider = model.model.layers[1].mlp
    hidden, inner = model.config.hidden_size, 3 * model.config.intermediate_size
    wider.gate_proj, wider.up_proj = (torch.nn.Linear(hidden, inner, bias=False) for _ in range(2))
    wider.down_proj = torch.nn.Linear(inner, hidden, bias=False)
    changed = mp.capture(model, batch)
    assert changed.structures[:2] == changed.structures[4:6]
    assert changed.structures[2] != changed.structures[6]
    assert changed.structures[3] != changed.structures[7]


def test_what_runs_between_ops_tells_groups_apart():
    class Gated(torch.nn.Module):
        def __init__(self, between):
            super().__init__()
            self.a, self.b, self.c, self.d = (torch.nn.Linear(8, 8) for _ in range(4))
            self.between = between

        def forward(self, x):
            return self.d(self.b(self.between(self.a(x))) * self.c(x))

    x = torch.zeros(2, 8)
    (structure, _) = mp.capture(Gated(torch.relu), x).structures
    (same, _) = mp.capture(Gated(torch.relu), x).structures
    (other, _) = mp.capture(Gated(torch.tanh), x).structures
    assert structure == same != other


def test_a_decode_step_needs_a_cache():
    ids = helpers.tokens(2)[:, :1]
    with pytest.raises(CaptureError, match="cannot be captured: it makes no key-value cache"):
        mp.capture(helpers.encoder(), {"input_ids": ids}, cached_tokens=4)
    with pytest.raises(InputError, match="example_inputs must be"):
        mp.capture(helpers.language_model("llama"), {"input_ids": ids, "x": 1}, cached_tokens=4)
