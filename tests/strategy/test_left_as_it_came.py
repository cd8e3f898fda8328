"""What is as it was afterwards: the user's model after an error, INC's tables; and how mistakes are said."""

import inspect

import capabilities
import helpers
import pytest
import torch
from calibration import patched
from neural_compressor.torch.algorithms.fp8_quant.model_configs import PATCHED_MODULE_TABLE
from neural_compressor.torch.quantization import (
    FP8Config,
    convert,
    finalize_calibration,
    prepare,
    quantize,
)
from torch import nn

import inc_mp_plugin as mp
from inc_mp_plugin.cli.run import run_script
from inc_mp_plugin.core.errors import InputError

pytestmark = pytest.mark.usefixtures("registered")

IDS = helpers.tokens(2, 16)
TIMED = {"tau": 1.0, "objective": "theoretical_time"}
EXPOSED = {
    "attention products": (lambda: helpers.language_model("llama").bfloat16(), TIMED),
    "experts": (lambda: helpers.mixture("mixtral"), {"tau": 1.0}),
    "both": (lambda: helpers.mixture("mixtral").bfloat16(), TIMED),
}


def call(model):
    with torch.no_grad():
        model(input_ids=IDS)


def fails(model):
    call(model)
    message = "the data has ended"
    raise RuntimeError(message)


KINDS = [pytest.param(kind, marks=pytest.mark.slow if kind == "both" else ()) for kind in EXPOSED]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("calibrate", "error"), [(fails, RuntimeError), (lambda _: None, InputError)], ids=["raises", "no call"]
)
def test_a_model_after_an_error(kind, calibrate, error):
    build, ours = EXPOSED[kind]
    model = build()
    before = helpers.state(model)
    with pytest.raises(error):
        quantize(model, mp.IPMSEConfig(**ours), run_fn=calibrate)
    helpers.assert_same_state(before, helpers.state(model))


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_another_process_converts(kind):
    build, ours = EXPOSED[kind]
    model = build()
    expected, before = model(input_ids=IDS).logits, helpers.state(model)
    prepared = prepare(model, mp.IPMSEConfig(**ours, mode="MEASURE"))
    call(prepared)
    finalize_calibration(prepared)
    after = helpers.state(model)
    assert before["weights"].keys() == after["weights"].keys()
    assert before["classes"] == after["classes"]
    assert before["attention"] == after["attention"]
    assert torch.equal(model(input_ids=IDS).logits, expected)
    assert patched(convert(build(), mp.IPMSEConfig(**ours, mode="QUANTIZE")))


@capabilities.fused_experts
def test_experts_own_their_weights_once_converted():
    model = quantize(helpers.mixture("mixtral"), mp.IPMSEConfig(tau=1e-9), run_fn=call)
    assert not [name for name in model.state_dict() if name.endswith("gate_up_proj")]
    assert any(".experts.0.gate_proj" in name for name in model.state_dict())


def test_tables_of_inc_and_its_default_list():
    allowed = inspect.signature(FP8Config.__init__).parameters["allowlist"].default["types"]
    table, types = set(PATCHED_MODULE_TABLE["cpu"]), list(allowed)
    lowered = []
    for config in (FP8Config(ip_mse=TIMED), mp.IPMSEConfig(**TIMED), FP8Config(ip_mse=TIMED)):
        model = helpers.language_model("llama").bfloat16()
        lowered.append(patched(quantize(model, config, run_fn=call)))
        assert (set(PATCHED_MODULE_TABLE["cpu"]), list(allowed)) == (table, types)
    assert lowered[0] == lowered[1] == lowered[2]
    assert any("matmul_av" in name for name in lowered[0])


def test_an_earlier_prepare_is_forgotten():
    model = helpers.language_model("llama")
    prepare(model, mp.IPMSEConfig(tau=1e-9))
    prepared = prepare(model, mp.IPMSEConfig(tau=1.0))
    call(prepared)
    assert len(patched(convert(prepared))) == 15


@pytest.mark.parametrize(
    "lists",
    [{"blocklist": {"types": ["Linear"]}}, {"allowlist": {"types": [], "names": ["nothing_of_this_name"]}}],
    ids=["all blocked", "none allowed"],
)
def test_lists_that_leave_nothing(lists):
    model = helpers.language_model("llama")
    expected = model(input_ids=IDS).logits
    result = quantize(model, mp.IPMSEConfig(tau=1.0, **lists), run_fn=call)
    assert not patched(result)
    assert torch.equal(result(input_ids=IDS).logits, expected)


class Listed(nn.Module):
    """Takes a list and a dict."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, parts, more=None):
        return self.inner(parts[0] + parts[1] + more["x"])


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, **inputs):
        return self.inner(inputs["x"])


class Counted(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, *parts):
        return self.inner(parts[0] + parts[1])


X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
CALLS = {
    "lists and dicts": (Listed, lambda m: m([X, X], more={"x": X})),
    "named by **inputs": (Named, lambda m: m(x=X)),
    "counted by *parts": (Counted, lambda m: m(X, X)),
}


@pytest.mark.parametrize("case", CALLS)
def test_ways_to_be_called(case):
    build, run = CALLS[case]

    def loss(model, batch):
        output = model(*batch) if isinstance(batch, tuple) else model(**batch)
        return output.square().mean(dim=1)

    result = quantize(build(), mp.IPMSEConfig(tau=1.0, loss_fn=loss), run_fn=run)
    assert patched(result) == {"inner"}


def test_calls_without_tensors():
    class Number(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, size):
            return self.inner(torch.ones(size, 4))

    with pytest.raises(InputError, match="called the model without tensors"):
        quantize(Number(), mp.IPMSEConfig(tau=1.0), run_fn=lambda m: m(3))


def test_a_compiled_model():
    with pytest.raises(InputError, match="the model is compiled; give the model itself"):
        quantize(torch.compile(helpers.language_model("llama")), mp.IPMSEConfig(tau=1.0), run_fn=call)


def test_time_of_a_format_that_the_device_has_no_peak_for():
    model = helpers.language_model("llama")
    with pytest.raises(InputError, match="no peak is known for fp32 on gaudi2"):
        prepare(model, mp.IPMSEConfig(tau=1.0, objective="theoretical_time"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"tau": "0.01"}, "tau is '0.01'; it must be a number"),
        ({"tau": True}, "tau is True; it must be a number"),
        ({"tau": 1e300}, "tau is 1e\\+300"),
        ({"gain_fraction": "half"}, "gain_fraction is 'half'"),
        ({"confidence": "0.9"}, "confidence is '0.9'"),
        ({"samples": 0}, "samples is 0; it must be a whole number"),
        ({"samples": 1.5}, "samples is 1.5"),
        ({"loss_fn": "mse"}, "loss_fn is 'mse'; it must be a function"),
    ],
    ids=str,
)
def test_wrong_values(given, said):
    with pytest.raises(InputError, match=said):
        mp.IPMSEConfig(**given)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"strategy": "ip_mse", "taus": 0.1}, "unknown key 'taus'; did you mean 'tau'"),
        ({"strategy": "ip_mse", "gain_fration": 0.1}, "did you mean 'gain_fraction'"),
        ({"strategy": "ip-mse", "tau": 0.1}, "unknown strategy 'ip-mse'"),
        ({"strategy": "IP_MSE"}, "unknown strategy 'IP_MSE'"),
    ],
    ids=str,
)
def test_misspellings_in_the_flat_form(given, said):
    model = helpers.language_model("llama")
    with pytest.raises(InputError, match=said):
        quantize(model, FP8Config(use_qdq=True, **given), run_fn=call)
    assert not patched(model)


def test_a_module_in_two_places_reached_through_a_slice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            shared = nn.Linear(4, 4)
            self.layers = nn.ModuleList([shared, shared, nn.Linear(4, 4)])
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            for layer in self.layers[:2]:
                x = layer(x)
            return self.head(x)

    graph = mp.capture(Twice(), X)
    assert list(graph.by_name) == ["head"]
    assert {product.reason for product in graph.unsupported} == {"no module has this name"}


def test_a_script_that_is_interrupted(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("raise KeyboardInterrupt")
    with pytest.raises(SystemExit) as ended:
        run_script(script, [])
    assert ended.value.code == 130
