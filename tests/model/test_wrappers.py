"""Models in DeepSpeed's engines, and batches on another device than the model."""

from types import SimpleNamespace

import helpers
import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

import inc_mp_plugin as mp
from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.model.batches import call, placed
from inc_mp_plugin.model.losses import sample_losses
from inc_mp_plugin.model.wrappers import unwrapped

BATCHES = [{"input_ids": helpers.tokens(2)}]


def engine_of(model, name="DeepSpeedEngine"):
    """What DeepSpeed shows of itself: a module around the model, whose attributes it passes on."""

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)

    kind = type(name, (nn.Module,), {"forward": forward, "__module__": "deepspeed.runtime.engine"})
    engine = type("PipelineEngine", (kind,), {})()
    engine.module = model
    return engine


@pytest.mark.parametrize("name", ["DeepSpeedEngine", "InferenceEngine"])
def test_an_engine_is_planned_as_the_model_in_it(name, tmp_path):
    model = helpers.language_model("llama")
    plain = mp.tune(model, BATCHES, gain_fraction=0.5, out=tmp_path / "plain")
    engine = engine_of(model, name)
    assert mp.tune(engine, BATCHES, gain_fraction=0.5, out=tmp_path / "engine").formats == plain.formats
    assert mp.capture(engine, BATCHES[0]) == mp.capture(model, BATCHES[0])
    assert mp.apply(engine, plain, BATCHES) is model


def test_a_module_of_that_name_is_no_engine():
    kind = type("DeepSpeedEngine", (nn.Sequential,), {})
    assert [op.name for op in mp.capture(kind(nn.Linear(4, 4)), torch.zeros(2, 4)).ops] == ["0"]


def test_weights_in_parts():
    model = helpers.language_model("llama")
    weight = model.lm_head.weight
    weight.ds_tensor, weight.data = weight.data.flatten()[:10].clone(), torch.empty(0)
    for use in (
        lambda: mp.capture(engine_of(model), BATCHES[0]),
        lambda: mp.tune(model, BATCHES, gain_fraction=0.5, out="unused"),
    ):
        with pytest.raises(InputError, match=r"over processes by DeepSpeed \(ZeRO 3\); let torch's FSDP2"):
            use()


def test_layers_that_deepspeed_put_in():
    model = nn.Sequential(nn.Linear(4, 4))
    place = {"__module__": "deepspeed.module_inject.layers"}
    model[0] = type("LinearAllreduce", (nn.Linear,), place)(4, 4)
    with pytest.raises(InputError, match=r"layers that DeepSpeed put in.*run\.parallel=fsdp"):
        mp.capture(model, torch.zeros(2, 4))


def test_weights_that_are_tensor_parallel():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        model = parallelize_module(nn.Sequential(nn.Linear(4, 4)), mesh, {"0": ColwiseParallel()})
        for use in (
            lambda: mp.capture(model, torch.zeros(2, 4)),
            lambda: mp.tune(model, BATCHES, gain_fraction=0.5, out="unused"),
        ):
            with pytest.raises(InputError, match=r"weights are DTensors\); let torch's FSDP2.*parallel=fsdp"):
                use()
    finally:
        distributed.destroy_process_group()


class Elsewhere(torch.Tensor):
    """A tensor that notes where it is asked to go."""

    def to(self, device):
        moved = torch.ones(2, 4).as_subclass(Elsewhere)
        moved.went = device
        return moved


def on_a_gpu():
    """A model that says its weights are on a second GPU."""
    model = nn.Linear(4, 4)
    model.parameters = lambda: iter([SimpleNamespace(device=torch.device("cuda", 1))])
    return model


def test_every_tensor_goes_where_the_first_weight_is():
    batch = {
        "x": torch.zeros(2, 4).as_subclass(Elsewhere),
        "more": [torch.zeros(2).as_subclass(Elsewhere), 3],
    }
    moved = placed(on_a_gpu(), batch)
    assert moved["x"].went == moved["more"][0].went == torch.device("cuda", 1)
    assert moved["more"][1] == 3 and not hasattr(batch["x"], "went")


@pytest.mark.parametrize(
    "model", [nn.Linear(4, 4, device="meta"), nn.ReLU()], ids=["no weights", "no parameters"]
)
def test_without_weights_batches_stay(model):
    batch = torch.zeros(2, 4)
    assert placed(model, batch) is batch


def test_a_loss_function_is_given_what_was_moved():
    def loss(model, batch):
        seen.append(batch.went)
        return batch.sum(dim=1)

    seen = []
    sample_losses(on_a_gpu(), torch.zeros(2, 4).as_subclass(Elsewhere), loss)
    assert seen == [torch.device("cuda", 1)]


def test_a_forward_pass_is_given_what_was_moved():
    output = call(on_a_gpu(), torch.zeros(2, 4).as_subclass(Elsewhere))
    torch.testing.assert_close(output[0].as_subclass(torch.Tensor), output[1].as_subclass(torch.Tensor))
    assert output.any()  # of ones, not of zeros


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_on_the_cpu_and_a_model_on_a_gpu(tmp_path):
    model = helpers.language_model("llama")
    expected = mp.measure_sensitivity(model, mp.capture(model, BATCHES[0]), BATCHES)
    model = model.cuda()
    measured = mp.measure_sensitivity(model, mp.capture(model, BATCHES[0]), BATCHES)
    torch.testing.assert_close(torch.tensor(measured.loss), torch.tensor(expected.loss), rtol=1e-4, atol=0)


def test_copies_for_several_devices_are_planned_as_the_model_in_them():
    model = helpers.language_model("llama")
    assert mp.capture(nn.DataParallel(model), BATCHES[0]) == mp.capture(model, BATCHES[0])
    assert unwrapped(nn.DataParallel(torch.compile(model))) is model


def converted(tmp_path):
    model = helpers.language_model("llama")
    return mp.apply(model, mp.tune(model, BATCHES, gain_fraction=0.5, out=tmp_path), BATCHES)


def inferring(tmp_path):
    with torch.inference_mode():
        return helpers.language_model("llama")


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda _: "meta-llama/Llama-3.1-8B",
            "model is of type str; give the model itself, a torch.nn.Module",
        ),
        (
            lambda _: nn.Linear(4, 4, device="meta"),
            "this Linear has no weights .they are on the meta device.; load",
        ),
        (
            lambda _: torch.jit.trace(nn.Linear(4, 4), torch.zeros(1, 4)),
            "is TorchScript, which has no modules to",
        ),
        (inferring, "this LlamaForCausalLM was made in torch.inference_mode"),
        (converted, "this LlamaForCausalLM is converted by INC already; load it anew"),
    ],
    ids=["a name", "no weights", "TorchScript", "inference mode", "converted"],
)
def test_what_cannot_be_planned_is_one_line(make, text, tmp_path):
    model = make(tmp_path)
    for use in (
        lambda: mp.tune(model, BATCHES, gain_fraction=0.5, out=tmp_path / "out"),
        lambda: mp.measure_sensitivity(model, None, BATCHES),
    ):
        with pytest.raises(InputError, match=text):
            use()


def test_batches_of_inference_mode_are_those_of_any_other(tmp_path):
    model = helpers.language_model("llama")
    plain = mp.tune(model, BATCHES, gain_fraction=0.5, out=tmp_path / "plain")
    with torch.inference_mode():
        batches = [{"input_ids": BATCHES[0]["input_ids"] + 0}]
        assert mp.tune(model, batches, gain_fraction=0.5, out=tmp_path / "inferring").formats == plain.formats
