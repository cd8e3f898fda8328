"""Language models that read images: every part's ops, with the tokens of images, up to INC's conversion."""

import capabilities
import helpers
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
    "intermediate_size": 24,
    "vocab_size": 64,
}
VISION = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 8,
    "patch_size": 4,
}
IMAGE = 60  # the token that stands for a part of an image
IDS = torch.tensor([[1, *[IMAGE] * 4, 5, 6, 7], [1, *[IMAGE] * 4, 9, 8, 7]])
PIXELS = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(4))


def llava():
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**TEXT),
        vision_config=transformers.CLIPVisionConfig(**VISION),
        image_token_index=IMAGE,
    )
    return transformers.LlavaForConditionalGeneration(config), {"input_ids": IDS, "pixel_values": PIXELS}


def gemma3():
    config = transformers.Gemma3Config(
        text_config=transformers.Gemma3TextConfig(**TEXT, head_dim=8),
        vision_config=transformers.SiglipVisionConfig(**VISION),
        mm_tokens_per_image=4,
        image_token_index=IMAGE,
    )
    batch = {"input_ids": IDS, "pixel_values": PIXELS, "token_type_ids": (IDS == IMAGE).long()}
    return transformers.Gemma3ForConditionalGeneration(config), batch


def smolvlm():
    config = transformers.SmolVLMConfig(
        text_config=transformers.LlamaConfig(**TEXT), image_token_id=IMAGE, scale_factor=2
    )
    config.vision_config = type(config.vision_config)(**VISION)
    batch = {"input_ids": torch.cat([IDS[:, :1], IDS[:, 4:]], dim=1), "pixel_values": PIXELS[:, None]}
    return transformers.SmolVLMForConditionalGeneration(config), batch


def idefics3():
    """Leaves empty images out, and so has shapes that follow from values."""
    vision = {**VISION, "num_hidden_layers": 1}
    text = transformers.LlamaConfig(**TEXT, pad_token_id=0)
    config = transformers.Idefics3Config(
        text_config=text, vision_config=vision, image_token_id=IMAGE, scale_factor=2
    )
    batch = {"input_ids": torch.cat([IDS[:, :1], IDS[:, 4:]], dim=1), "pixel_values": PIXELS[:, None]}
    return transformers.Idefics3ForConditionalGeneration(config), batch


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(make, marks=capabilities.images_in_a_trace(make.__name__), id=make.__name__)
        for make in (llava, gemma3, smolvlm, idefics3)
    ],
)
def case(request):
    torch.manual_seed(0)
    model, batch = request.param()
    return model.eval(), batch


def test_sensitivities_of_all_parts_are_those_of_naive_autograd(case):
    model, batch = case
    graph = mp.capture(model, batch)
    parts = {op.name.removeprefix("model.").split(".")[0] for op in graph.ops}
    assert len(parts & {"vision_tower", "vision_model", "language_model", "text_model"}) == 2
    sensitivity = mp.measure_sensitivity(model, graph, [batch])
    naive.assert_sensitivities_agree(sensitivity, model, batch, default_loss)


@capabilities.images_in_a_trace("llava")
def test_the_plan_is_what_inc_converts(tmp_path):
    torch.manual_seed(0)
    model, batch = llava()
    plan = mp.tune(model.eval(), [batch], gain_fraction=0.6, out=tmp_path)
    converted = mp.apply(model, plan, [batch])
    patched = {name for name, m in converted.named_modules() if type(m).__name__.startswith("Patched")}
    assert patched == set(plan.quantized)
    assert default_loss(converted, batch).isfinite().all()


def test_a_compiled_model_is_planned_as_the_model_itself(tmp_path):
    model, batches = helpers.language_model("llama"), [{"input_ids": helpers.tokens(2)}]
    plain = mp.tune(model, batches, gain_fraction=0.5, out=tmp_path / "plain")
    compiled = torch.compile(model)
    assert mp.tune(compiled, batches, gain_fraction=0.5, out=tmp_path / "compiled").formats == plain.formats
    assert mp.apply(compiled, plain, batches) is model
