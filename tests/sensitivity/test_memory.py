"""Low memory: the same results bit for bit, of which no more than a block's activations are kept."""

import helpers
import numpy as np
import pytest
import torch
from torch import nn

import inc_mp_plugin as mp
from inc_mp_plugin.core.estimate import Estimate
from inc_mp_plugin.core.graph import Graph, Op
from inc_mp_plugin.model.modes import as_measured
from inc_mp_plugin.sensitivity import memory as module
from inc_mp_plugin.sensitivity import weight_gradients
from inc_mp_plugin.sensitivity.one_batch import Pass
from inc_mp_plugin.sensitivity.rounded import rounded
from inc_mp_plugin.sensitivity.rounding import observe_rounding
from inc_mp_plugin.sensitivity.tapping import Tapping
from inc_mp_plugin.sensitivity.taps import Taps

E4M3 = "fp8_e4m3"
SCALES = mp.Scales("maxabs_arbitrary", "cpu")
FP8 = {"scales": SCALES, "formats": (E4M3,)}
MODELS = helpers.mostly_slow(
    ["llama", "mixtral", "qwen3_moe", "gemma3", "gpt2", "gpt_neox", "opt", "falcon", "phi3"],
    "llama",
    "mixtral",
)
MODES = {
    "loss": {},
    "kl by batches, two draws": {"yardstick": "kl", "estimate": Estimate("batch", 2), **FP8},
    "both": {"yardstick": "both", **FP8},
}


def text(samples=3):
    return [{"input_ids": helpers.tokens(samples, seed=seed)} for seed in range(2)]


def assert_equal(one, other):
    assert one.ops == other.ops
    assert one.measured_drift == other.measured_drift
    arrays, others = (
        {
            "loss": s.loss,
            "input": s.input,
            "weight": s.weight,
            **s.rounding,
            **{f"second {k}": v for k, v in s.second.items()},
            **{f"shared {k}": v for k, v in s.shared.items()},
            **s.maxabs,
        }
        for s in (one, other)
    )
    assert arrays.keys() == others.keys()
    for name, array in arrays.items():
        assert np.array_equal(array, others[name]), name
    if one.kl is not None:
        assert_equal(one.kl, other.kl)


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
@pytest.mark.parametrize("name", MODELS)
def test_low_and_high_memory_agree_bit_for_bit(name, mode):
    if name == "mixtral" and helpers.OLD_TRANSFORMERS:
        pytest.skip("samples run one by one for their rows, and together for the scales in low memory alone")
    model, batches = helpers.language_model(name), text()
    graph = mp.capture(model, batches[0])
    high, low = (mp.measure_sensitivity(model, graph, batches, memory=m, **mode) for m in ("high", "low"))
    assert_equal(low, high)


def test_a_model_without_repeated_blocks_has_the_same_results_too():
    model, batch = helpers.ResidualCNN().eval(), torch.randn(2, 3, 8, 8)
    graph = mp.capture(model, batch)
    kinds = {"loss_fn": helpers.squared_loss, **FP8}
    high, low = (mp.measure_sensitivity(model, graph, [batch], memory=m, **kinds) for m in ("high", "low"))
    assert_equal(low, high)


def kept_bytes(layers, *, low):
    """Bytes of the tensors that a forward pass keeps for the backward pass, weights aside."""
    model = helpers.language_model("llama", num_hidden_layers=layers)
    (batch, _), weights = text(), {p.data_ptr() for p in model.parameters()}
    graph = mp.capture(model, batch)
    kept = {}

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    settings = Pass(model, graph, low=low)
    with (
        as_measured(model),
        Taps(Tapping(model, graph, 3, blocks=settings.blocks, tokens={12})),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        outcome = settings.forward(batch)
    del outcome
    return sum(kept.values())


def test_a_forward_pass_keeps_one_input_per_block():
    per_block = 3 * 12 * 64 * 4  # samples x tokens x width, in FP32
    marker = 4  # bytes of a scalar, through which gradients flow from frozen embeddings
    assert kept_bytes(6, low=True) - kept_bytes(4, low=True) == 2 * (per_block + marker)
    assert kept_bytes(6, low=False) - kept_bytes(4, low=False) > 20 * per_block


@pytest.mark.parametrize("name", helpers.mostly_slow(["llama", "mixtral"], "llama"))
def test_weights_that_are_rounded_as_used_give_the_same_outputs_one_at_a_time(name):
    model, (batch, _) = helpers.language_model(name).eval(), text()
    graph = mp.capture(model, batch)
    rounding = observe_rounding(model, graph, [batch], None, scales=SCALES, formats=(E4M3,))
    formats = {op.name: E4M3 for op in graph.ops if (op.name, 0) in rounding.maxabs}
    before = {n: p.data_ptr() for n, p in model.named_parameters()}
    outputs, most = [], []

    def count(*_):
        now = {n: p.data_ptr() for n, p in model.named_parameters()}
        most.append(sum(now[n] != before[n] for n in before if n in now))

    for as_used in (False, True):
        with (
            torch.no_grad(),
            as_measured(model),
            rounded(model, rounding, formats, as_used=as_used),
        ):
            inner = next(m for n, m in model.named_modules() if n.endswith("self_attn"))
            handle = inner.register_forward_hook(count)
            outputs.append(model(**batch, use_cache=False).logits)
            handle.remove()
    assert torch.equal(*outputs)
    assert most[0] > 3
    assert most[1] == 0
    assert {n: p.data_ptr() for n, p in model.named_parameters()} == before


def test_a_model_that_fails_in_a_block_leaves_as_it_came():
    model, batches = helpers.language_model("llama"), text()
    graph = mp.capture(model, batches[0])
    before = helpers.state(model)
    calls = []

    def fail(*_):
        calls.append(torch.is_grad_enabled())
        if calls[-1] and len(calls) > 1:  # in the replay
            raise KeyboardInterrupt

    handle = model.model.layers[0].mlp.register_forward_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        mp.measure_sensitivity(model, graph, batches, memory="low")
    handle.remove()
    helpers.assert_same_state(before, helpers.state(model))


def inputs_alone(model, graph, batch, rounding):
    """Totals without the parts of the weights."""
    with as_measured(model), Taps(Tapping(model, graph, 4, rounding, inputs_only=True)) as taps:
        helpers.squared_loss(model, batch).sum().backward()
    return taps.totals


@pytest.mark.parametrize("method", ["maxabs_arbitrary", "act_maxabs_pow2_weights_pcs_maxabs_pow2"])
def test_slabs_of_a_weight_add_up_to_the_whole(method, monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 6))
    batch = torch.randn(4, 12)
    ops = tuple(Op(n, "linear", 1, 1, 1) for n in ("0", "2"))
    graph = Graph(ops, (("0",), ("2",)), (), {})
    scales = mp.Scales(method, "cpu")
    monkeypatch.setattr(weight_gradients, "_SLAB", 36)
    result = mp.measure_sensitivity(
        model, graph, [batch], helpers.squared_loss, scales=scales, formats=(E4M3,), memory="high"
    )
    whole = observe_rounding(model, graph, [batch], helpers.squared_loss, scales=scales, formats=(E4M3,))
    of_inputs = inputs_alone(model, graph, batch, whole)
    for sample in range(4):
        model.zero_grad()
        helpers.squared_loss(model, batch[sample : sample + 1]).sum().backward()
        for column, name in enumerate(("0", "2")):
            weight = model[int(name)].weight
            assert result.weight[sample, column] == pytest.approx(
                float((weight * weight.grad).double().square().sum()), rel=1e-5
            )
            by_weight = float((whole.of_weight(weight, E4M3) * weight.grad).double().square().sum())
            by_input = of_inputs.rounding[E4M3][sample, column]
            assert result.rounding[E4M3][sample, column] - by_input == pytest.approx(by_weight, rel=1e-4)


class Linear(nn.Module):
    """A linear layer by its name alone, as INC sees it."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 2))

    def forward(self, x):
        return x @ self.weight.T


def test_a_linear_layer_of_another_class_has_the_gradient_of_one():
    graph = Graph((Op("0", "linear", 1, 6, 1),), (("0",),), (), {})
    result = mp.measure_sensitivity(nn.Sequential(Linear()), graph, [torch.ones(2, 2)], helpers.summed_loss)
    assert result.weight.tolist() == [[pytest.approx(6.0)]] * 2


def gigabytes(monkeypatch, free):
    monkeypatch.setattr(module, "free_bytes", lambda device: None if free is None else int(free * 1e9))


@pytest.mark.parametrize(
    ("free", "expected"), [(1e6, "high"), (0.1, "low"), (None, "high")], ids=["much", "little", "unknown"]
)
def test_auto_decides_by_what_is_free_and_says_so(free, expected, monkeypatch, caplog):
    model, (batch, _) = helpers.language_model("llama"), text()
    graph = mp.capture(model, batch)
    gigabytes(monkeypatch, free)
    caplog.set_level("INFO")
    assert module.decided("auto", model, graph, rounded=False) == expected
    assert ("memory: low" in caplog.text) == (expected == "low")


def test_free_memory_of_this_machine_is_below_what_it_has():
    free = module.free_bytes(torch.device("cpu"))
    assert free is None or 0 < free < 2**50


def test_another_word_is_refused():
    model, (batch, _) = helpers.language_model("llama"), text()
    graph = mp.capture(model, batch)
    with pytest.raises(mp.InputError, match="unknown memory 'small'; known: auto, high, low"):
        mp.measure_sensitivity(model, graph, [batch], memory="small")
