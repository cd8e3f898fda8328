"""Losses of samples that are told from the others of their batch: texts and images of CLIP and SigLIP."""

import copy

import naive
import pytest
import torch
import transformers

import inc_mp_plugin as mp
from inc_mp_plugin.model.attention import expose_bgemms
from inc_mp_plugin.model.losses import default_loss

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
PARTS = {
    "text_config": {
        **SMALL,
        "vocab_size": 40,
        "projection_dim": 16,
        "projection_size": 16,
        "eos_token_id": 39,
    },
    "vision_config": {**SMALL, "image_size": 8, "patch_size": 4, "projection_dim": 16},
}
BATCH = {
    "input_ids": torch.tensor([[1, 5, 6, 39], [1, 9, 4, 39], [1, 30, 31, 39]]),
    "pixel_values": torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(3)),
}


@pytest.fixture(scope="module", params=["CLIP", "Siglip"])
def model(request):
    torch.manual_seed(0)
    config = getattr(transformers, f"{request.param}Config")
    extra = {"projection_dim": 16} if request.param == "CLIP" else {}
    return getattr(transformers, f"{request.param}Model")(config(**PARTS, **extra)).eval()


@torch.no_grad()
def test_their_mean_is_the_loss_of_transformers(model):
    torch.testing.assert_close(default_loss(model, BATCH).mean(), model(**BATCH, return_loss=True).loss)


def test_sensitivities_are_those_of_each_loss_over_the_whole_batch(model):
    graph = mp.capture(model, BATCH)
    sensitivity = mp.measure_sensitivity(model, graph, [BATCH])
    assert {name.split("_")[0] for name in sensitivity.ops} >= {"text", "vision"}
    exposed = copy.deepcopy(model)  # in FP32, for masks of older libraries overflow in float64
    expose_bgemms(exposed)
    for sample in range(3):
        loss = lambda module, batch, sample=sample: default_loss(module, batch)[sample]  # noqa: E731
        assert sensitivity.loss[sample] == pytest.approx(float(loss(exposed, BATCH)), rel=1e-4)
        for column, name in enumerate(sensitivity.ops):
            mine = sensitivity.input[sample, column] + sensitivity.weight[sample, column]
            assert mine == pytest.approx(naive._one_op(exposed, name, BATCH, loss), rel=1e-4, abs=1e-12)


def test_the_plan_is_what_inc_converts(model, tmp_path):
    model = copy.deepcopy(model)
    plan = mp.tune(model, [BATCH], gain_fraction=1.0, out=tmp_path)
    before = default_loss(model, BATCH)
    converted = mp.apply(model, plan, [BATCH])
    patched = {name for name, m in converted.named_modules() if type(m).__name__.startswith("Patched")}
    assert patched == set(plan.quantized) and {name.split("_")[0] for name in patched} >= {"text", "vision"}
    measured = float((default_loss(converted, BATCH) - before).square().mean())
    assert 0 < measured < 10 * plan.loss_mse
