"""Qwen's models: images of any size in one row of patches, whose windows depend on the sizes' values."""

import copy

import capabilities
import naive
import pytest
import torch
import transformers

import inc_mp_plugin as mp
from inc_mp_plugin.model.losses import default_loss

TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 24,
    "vocab_size": 64,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
}
VISION = {
    "hidden_size": 16,
    "depth": 2,
    "num_heads": 2,
    "intermediate_size": 24,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 16,
}
IMAGE = 60  # the token that stands for four patches of an image
TOKENS = {"image_token_id": IMAGE, "video_token_id": 61, "vision_start_token_id": 62}
SIZES = torch.tensor([[1, 4, 4], [1, 4, 8]])  # frames, rows and columns of patches
IDS = torch.tensor([[1, *[IMAGE] * 4, 5, 6, 7, 9, 8, 0, 0], [2, *[IMAGE] * 8, 4, 3, 5]])


def qwen2_vl():
    vision = {**VISION, "embed_dim": 16, "mlp_ratio": 2}
    config = transformers.Qwen2VLConfig(text_config=TEXT, vision_config=vision, **TOKENS)
    return transformers.Qwen2VLForConditionalGeneration(config)


def qwen2_5_vl():
    windows = {"window_size": 16, "fullatt_block_indexes": [1]}
    config = transformers.Qwen2_5_VLConfig(text_config=TEXT, vision_config={**VISION, **windows}, **TOKENS)
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


def qwen3_vl():
    vision = {**VISION, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
    config = transformers.Qwen3VLConfig(text_config=TEXT, vision_config=vision, **TOKENS)
    return transformers.Qwen3VLForConditionalGeneration(config)


def batch_of(*images):
    """Samples of one image each."""
    chosen = list(images)
    patches = [
        torch.randn(int(SIZES[i].prod()), 96, generator=torch.Generator().manual_seed(i)) for i in chosen
    ]
    return {
        "input_ids": IDS[chosen],
        "attention_mask": (IDS[chosen] > 0).long(),
        "mm_token_type_ids": (IDS[chosen] == IMAGE).int(),
        "pixel_values": torch.cat(patches),
        "image_grid_thw": SIZES[chosen],
    }


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(make, marks=[capabilities.images_in_a_trace(make.__name__), *slow], id=make.__name__)
        for make, slow in ((qwen2_5_vl, []), (qwen2_vl, [pytest.mark.slow]), (qwen3_vl, [pytest.mark.slow]))
    ],
)
def case(request):
    torch.manual_seed(0)
    model = request.param().eval()
    return model, mp.capture(model, batch_of(0, 1))


def test_all_parts_but_the_patches_are_ops(case):
    model, graph = case
    linears = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert linears < graph.by_name.keys()
    assert {op.kind for op in graph.ops} == {"linear", "bgemm"}
    assert [product.name for product in graph.unsupported] == ["model.visual.patch_embed.proj"]


@torch.no_grad()
def test_the_shapes_of_products_are_those_that_run(case):
    model, graph = case
    ran = dict.fromkeys(graph.by_name, 0)
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):

            def count(module, args, output, name=name):
                ran[name] += args[0].numel() * module.out_features

            handles.append(module.register_forward_hook(count))
    default_loss(model, batch_of(0, 1))
    for handle in handles:
        handle.remove()
    assert {op.name: op.macs for op in graph.ops if op.kind == "linear"} == {
        name: macs // 2 for name, macs in ran.items() if macs
    }


def test_sensitivities_are_those_of_naive_autograd(case):
    model, graph = case
    for batch in (batch_of(0), batch_of(1)):
        sensitivity = mp.measure_sensitivity(model, graph, [batch])
        naive.assert_sensitivities_agree(sensitivity, model, batch, default_loss)


def test_the_batch_size_does_not_matter(case):
    model, graph = case
    together = mp.measure_sensitivity(model, graph, [batch_of(0, 1)])
    alone = mp.measure_sensitivity(model, graph, [batch_of(0), batch_of(1)])
    for part in ("loss", "input", "weight"):
        torch.testing.assert_close(
            torch.tensor(getattr(together, part)), torch.tensor(getattr(alone, part)), rtol=1e-4, atol=1e-10
        )


def test_the_plan_is_what_inc_converts(case, tmp_path):
    model, batches = copy.deepcopy(case[0]), [batch_of(0, 1)]
    plan = mp.tune(model, batches, gain_fraction=0.6, out=tmp_path)
    before = default_loss(model, batches[0])
    converted = mp.apply(model, plan, batches)
    patched = {name for name, m in converted.named_modules() if type(m).__name__.startswith("Patched")}
    assert patched == set(plan.quantized) and any(name.startswith("model.visual.") for name in patched)
    losses = default_loss(converted, batches[0])
    assert losses.isfinite().all() and not torch.equal(losses, before)
