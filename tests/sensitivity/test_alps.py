import helpers
import pytest
import torch
from torch import nn

from inc_mp_plugin.core.errors import InputError, NonFiniteError
from inc_mp_plugin.graph.capture import capture
from inc_mp_plugin.inc.switching import inc_switch
from inc_mp_plugin.model.losses import language_model_loss, sample_losses
from inc_mp_plugin.runtime.store import Partial
from inc_mp_plugin.scales.methods import Scales
from inc_mp_plugin.sensitivity.alps import measure_alps, measure_alps_without_training

SCALES = Scales("maxabs_pow2", "cpu")


@pytest.fixture
def partial(tmp_path):
    return Partial(tmp_path / "alps.partial.npz", "key")


def score(formats):
    """A score made up of parts: what each op alone adds must come back."""
    parts = {("a", "int2"): 0.5, ("b", "int2"): -0.125, ("a", "int4"): 0.25, ("b", "int4"): 0.0}
    return 2.0 + sum(parts[pair] for pair in formats.items())


def test_values_are_what_each_op_alone_adds(partial):
    alps = measure_alps(["a", "b"], ["int4", "int2"], score, partial, unit="accuracy")
    assert (alps.method, alps.unit) == ("alps", "accuracy")
    assert alps.values == {"int4": {"a": 0.25, "b": 0.0}, "int2": {"a": 0.5, "b": -0.125}}
    assert not partial.path.exists()


@pytest.mark.parametrize("done", range(3))
def test_goes_on_where_it_stopped(partial, done):
    calls = []

    def stops(formats):
        if len(calls) == done:
            raise KeyboardInterrupt
        calls.append(formats)
        return score(formats)

    with pytest.raises(KeyboardInterrupt):
        measure_alps(["a", "b"], ["int2"], stops, partial)
    resumed = []
    alps = measure_alps(["a", "b"], ["int2"], lambda f: resumed.append(f) or score(f), partial)
    assert alps == measure_alps(["a", "b"], ["int2"], score, partial)
    assert calls + resumed == [{}, {"a": "int2"}, {"b": "int2"}]


@pytest.mark.parametrize(
    ("bad", "named"), [({}, "every op in the base"), ({"b": "int2"}, "b in int2")], ids=str
)
def test_a_score_that_is_not_finite(partial, bad, named):
    with pytest.raises(NonFiniteError, match=named):
        measure_alps(["a", "b"], ["int2"], lambda f: float("nan") if f == bad else score(f), partial)


def test_equals_the_losses_of_incs_own_modules(partial):
    """Bit by bit."""
    model = helpers.language_model("llama")
    batches = [{"input_ids": helpers.tokens(2, seed=seed)} for seed in (0, 1)]
    graph = capture(model, batches[0])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    alps = measure_alps_without_training(
        model, graph, batches, None, formats=("fp8_e4m3",), partial=partial, scales=SCALES
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    names = [op.name for op in graph.ops]
    switch = inc_switch(
        model, graph, names, base="fp32", lower="fp8_e4m3", batches=batches, scale_method="maxabs_pow2"
    )

    def mean_loss(formats):
        switch.select(formats)
        with torch.no_grad():
            return (
                sum(float(sample_losses(switch.model, batch, None).double().sum()) for batch in batches) / 4
            )

    base = mean_loss({})
    for name in names:
        assert alps.values["fp8_e4m3"][name] == mean_loss({name: "fp8_e4m3"}) - base, name


def test_goes_on_at_the_batch_where_it_stopped(partial, tmp_path, monkeypatch):
    model = helpers.language_model("llama")
    batches = [{"input_ids": helpers.tokens(2, seed=seed)} for seed in range(3)]
    graph, before, calls = capture(model, batches[0]), helpers.state(model), []
    settings = {"formats": ("fp8_e4m3",), "scales": SCALES}
    whole = Partial(tmp_path / "whole.npz", "key")
    expected = measure_alps_without_training(model, graph, batches, None, partial=whole, **settings)

    def counted(*arguments):
        calls.append(arguments)
        if len(calls) == stop_at:
            raise KeyboardInterrupt
        return sample_losses(*arguments)

    monkeypatch.setattr("inc_mp_plugin.sensitivity.alps.sample_losses", counted)
    each = len(graph.ops) + 1
    stop_at = 2 + 2 * each + 3  # in the third batch; the first run tells that the model is a chain
    with pytest.raises(KeyboardInterrupt):
        measure_alps_without_training(model, graph, batches, None, partial=partial, **settings)
    helpers.assert_same_state(before, helpers.state(model))
    calls.clear()
    again = measure_alps_without_training(model, graph, batches, None, partial=partial, **settings)
    assert again == expected
    assert len(calls) == 2 + each
    assert not partial.path.exists()


def test_a_loss_that_is_not_finite_names_the_op(partial):
    model = helpers.language_model("llama")
    batches, weight, seen = [{"input_ids": helpers.tokens(2)}], model.lm_head.weight, []
    model.lm_head.register_forward_hook(lambda head, *_: seen.append(head.weight is weight))

    def loss(model, batch):
        return language_model_loss(model, batch) * (1.0 if seen[-1] else float("nan"))

    with pytest.raises(NonFiniteError, match="nan with lm_head in fp8_e4m3"):
        measure_alps_without_training(
            model,
            capture(model, batches[0]),
            batches,
            loss,
            formats=("fp8_e4m3",),
            partial=partial,
            scales=SCALES,
        )


def test_bf16_needs_no_scales(partial):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    batches = [torch.randn(5, 4)]
    graph = capture(model, batches[0])
    alps = measure_alps_without_training(
        model, graph, batches, helpers.squared_loss, formats=("bf16",), partial=partial
    )
    base = helpers.squared_loss(model, batches[0]).mean()
    first = nn.Linear(4, 8)
    first.weight.data, first.bias.data = model[0].weight.data.bfloat16().float(), model[0].bias.data
    lowered = nn.Sequential(first, model[1], model[2])
    expected = helpers.squared_loss(lowered, batches[0].bfloat16().float()).mean() - base
    assert alps.values["bf16"]["0"] == pytest.approx(float(expected), abs=1e-7)


def test_ops_that_no_sample_reached_have_no_value(partial):
    model = helpers.mixture("mixtral", num_experts_per_tok=1)
    batches = [{"input_ids": helpers.tokens(1, length=2)}]
    graph = capture(model, batches[0])
    alps = measure_alps_without_training(
        model, graph, batches, language_model_loss, formats=("fp8_e4m3",), partial=partial, scales=SCALES
    )
    assert 0 < len(alps.values["fp8_e4m3"]) < len(graph.ops)


@pytest.mark.parametrize(
    ("formats", "scales", "message"),
    [(("fp8_e4m3",), None, "give both"), (("int4",), SCALES, "int4"), ((), None, "no format")],
    ids=["fp8 without scales", "an integer", "none"],
)
def test_formats_that_cannot_be_rounded_to(partial, formats, scales, message):
    model = nn.Sequential(nn.Linear(2, 2))
    batches = [torch.randn(1, 2)]
    graph = capture(model, batches[0])
    with pytest.raises(InputError, match=message):
        measure_alps_without_training(
            model, graph, batches, helpers.squared_loss, formats=formats, partial=partial, scales=scales
        )
