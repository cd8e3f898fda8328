"""Diffusion transformers under a loss of the user's: the squared error of the noise that they predict."""

import copy

import naive
import numpy as np
import pytest
import torch

import inc_mp_plugin as mp

diffusers = pytest.importorskip("diffusers")

SAMPLES = 8
HEADS = {"num_attention_heads": 2, "attention_head_dim": 8}


def noise(*shape, seed=0):
    return torch.randn(SAMPLES, *shape, generator=torch.Generator().manual_seed(seed))


def stable_diffusion_3():
    model = diffusers.SD3Transformer2DModel(
        **HEADS,
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pooled_projection_dim=10,
        pos_embed_max_size=8,
    )
    return model, {
        "hidden_states": noise(4, 8, 8),
        "encoder_hidden_states": noise(5, 12, seed=1),
        "pooled_projections": noise(10, seed=2),
        "timestep": torch.linspace(10, 900, SAMPLES).long(),
        "target": noise(4, 8, 8, seed=3),
    }


def flux():
    model = diffusers.FluxTransformer2DModel(
        **HEADS,
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        joint_attention_dim=12,
        pooled_projection_dim=10,
        axes_dims_rope=(2, 2, 4),
    )
    return model, {
        "hidden_states": noise(16, 4),
        "encoder_hidden_states": noise(5, 12, seed=1),
        "pooled_projections": noise(10, seed=2),
        "timestep": torch.linspace(0.1, 0.9, SAMPLES),
        "img_ids": torch.cartesian_prod(torch.zeros(1), torch.arange(4.0), torch.arange(4.0)),
        "txt_ids": torch.zeros(5, 3),
        "target": noise(16, 4, seed=3),
    }


def dit():
    model = diffusers.DiTTransformer2DModel(
        **HEADS, in_channels=4, num_layers=2, sample_size=8, patch_size=2, norm_num_groups=1
    )
    return model, {
        "hidden_states": noise(4, 8, 8),
        "timestep": torch.linspace(10, 900, SAMPLES).long(),
        "class_labels": torch.arange(SAMPLES),
        "target": noise(4, 8, 8, seed=3),
    }


def squared_error(model, batch):
    inputs = {key: value for key, value in batch.items() if key != "target"}
    return (model(**inputs).sample - batch["target"]).square().flatten(1).mean(dim=1)


@pytest.fixture(scope="module", params=[stable_diffusion_3, flux, dit], ids=lambda make: make.__name__)
def case(request):
    torch.manual_seed(0)
    model, batch = request.param()
    return model.eval(), batch


def test_every_linear_layer_is_an_op_and_attention_is_listed(case):
    model, batch = case
    graph = mp.capture(model, batch)
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    assert graph.by_name.keys() == {name for name, m in model.named_modules() if isinstance(m, kinds)}
    fused = [product for product in graph.unsupported if "fused attention kernel" in product.reason]
    assert len(fused) == 2


def test_sensitivities_are_those_of_naive_autograd(case):
    model, batch = case
    few = {key: value[:2] if len(value) == SAMPLES else value for key, value in batch.items()}
    sensitivity = mp.measure_sensitivity(model, mp.capture(model, few), [few], squared_error)
    naive.assert_sensitivities_agree(sensitivity, model, few, squared_error)


@torch.no_grad()
def test_the_loss_that_inc_gives_is_the_predicted_one(case, tmp_path):
    model, batch = copy.deepcopy(case[0]), case[1]
    plan = mp.tune(model, [batch], gain_fraction=1.0, loss_fn=squared_error, out=tmp_path)
    before = squared_error(model, batch)
    converted = mp.apply(model, plan, [batch])
    patched = {name for name, m in converted.named_modules() if type(m).__name__.startswith("Patched")}
    assert patched == set(plan.quantized)
    measured = float((squared_error(converted, batch) - before).square().mean())
    assert 0.2 < np.sqrt(measured / plan.loss_mse) < 1.5  # the paper's noise errs on the safe side
