"""The loss of each sample by the model's head, against transformers' own loss of that sample alone."""

import copy

import capabilities
import helpers
import naive
import pytest
import torch
import transformers

import inc_mp_plugin as mp
from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.model.losses import default_loss

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
SMALL_T5 = {
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": 1,
    "num_heads": 2,
    "vocab_size": 40,
    "decoder_start_token_id": 0,
}
SMALL_BART = {
    "d_model": 16,
    "vocab_size": 40,
    **{
        f"{side}_{key}": n
        for side in ("encoder", "decoder")
        for key, n in (("layers", 1), ("attention_heads", 2))
    },
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 32,
    "pad_token_id": 1,
    "decoder_start_token_id": 2,
}


def bert(head, **settings):
    config = transformers.BertConfig(**SMALL, vocab_size=40, **settings)
    return getattr(transformers, f"BertFor{head}")(config)


def vit(head="ImageClassification", **settings):
    config = transformers.ViTConfig(**SMALL, image_size=8, patch_size=4, **settings)
    return getattr(transformers, f"ViTFor{head}")(config)


def whisper():
    config = transformers.WhisperConfig(**SMALL_BART, num_mel_bins=8, max_source_positions=8, eos_token_id=3)
    return transformers.WhisperForConditionalGeneration(config)


def trocr():
    image = transformers.ViTConfig(**SMALL, image_size=8, patch_size=4)
    text = transformers.TrOCRConfig(
        vocab_size=40,
        d_model=16,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=24,
        cross_attention_hidden_size=16,
    )
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(image, text)
    config.decoder_start_token_id, config.pad_token_id = 1, 0
    return transformers.VisionEncoderDecoderModel(config=config)


IDS = helpers.tokens(3, 8) % 40
ANSWERS = torch.randint(4, 40, (3, 5), generator=torch.Generator().manual_seed(1))
PADDED = torch.where(torch.arange(5) < torch.tensor([5, 3, 2])[:, None], ANSWERS, -100)
TEXT = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
IMAGES = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(2))
HALF = torch.where(torch.arange(8) % 2 == 0, IDS, -100)

HEADS = {
    "t5": (
        lambda: transformers.T5ForConditionalGeneration(transformers.T5Config(**SMALL_T5)),
        {**TEXT, "labels": PADDED},
    ),
    "bart": (
        lambda: transformers.BartForConditionalGeneration(transformers.BartConfig(**SMALL_BART)),
        {**TEXT, "labels": PADDED},
    ),
    "whisper": (whisper, {"input_features": torch.randn(3, 8, 16), "labels": PADDED}),
    "trocr": (trocr, {"pixel_values": IMAGES, "labels": PADDED}),
    "classes": (
        lambda: bert("SequenceClassification", num_labels=4),
        {**TEXT, "labels": torch.tensor([0, 3, 1])},
    ),
    "classes, a column": (
        lambda: bert("SequenceClassification", num_labels=4),
        {**TEXT, "labels": torch.tensor([[0], [3], [1]])},
    ),
    "several classes": (
        lambda: bert("SequenceClassification", num_labels=4),
        {**TEXT, "labels": torch.eye(4)[:3] + torch.eye(4)[1:]},
    ),
    "several classes by name": (
        lambda: bert("SequenceClassification", num_labels=4, problem_type="multi_label_classification"),
        {**TEXT, "labels": torch.eye(4)[:3]},
    ),
    "a number": (
        lambda: bert("SequenceClassification", num_labels=1),
        {**TEXT, "labels": torch.tensor([0.5, -1.0, 2.0])},
    ),
    "numbers": (
        lambda: bert("SequenceClassification", num_labels=2, problem_type="regression"),
        {**TEXT, "labels": torch.tensor([[0.5, 1.0], [-1.0, 0.0], [2.0, 2.0]])},
    ),
    "tokens": (
        lambda: bert("TokenClassification", num_labels=5),
        {**TEXT, "labels": (HALF % 5).where(HALF > 0, -100)},
    ),
    "masked": (lambda: bert("MaskedLM"), {**TEXT, "labels": HALF}),
    "span": (
        lambda: bert("QuestionAnswering"),
        {**TEXT, "start_positions": torch.tensor([0, 2, 7]), "end_positions": torch.tensor([1, 2, 7])},
    ),
    "choices": (
        lambda: bert("MultipleChoice"),
        {"input_ids": IDS[:, None].repeat(1, 2, 1).cumsum(1) % 40, "labels": torch.tensor([0, 1, 1])},
    ),
    "images": (lambda: vit(num_labels=3), {"pixel_values": IMAGES, "labels": torch.tensor([0, 1, 2])}),
}


MARKS = {
    "bart": capabilities.common_masks("bart"),
    "trocr": capabilities.answers_as_they_are("vision_encoder_decoder"),
}
CASES = [pytest.param(name, marks=MARKS.get(name, ())) for name in HEADS]


@pytest.fixture(scope="module", params=CASES)
def case(request):
    make, batch = HEADS[request.param]
    torch.manual_seed(0)
    return make().eval(), batch


@torch.no_grad()
def test_losses_are_those_of_transformers_one_by_one(case):
    model, batch = case
    losses = default_loss(model, batch)
    alone = [model(**{key: value[i : i + 1] for key, value in batch.items()}).loss for i in range(3)]
    torch.testing.assert_close(losses, torch.stack(alone))
    assert len({round(float(loss), 5) for loss in losses}) == 3


def test_sensitivities_are_those_of_naive_autograd(case):
    model, batch = case
    graph = mp.capture(model, batch)
    sensitivity = mp.measure_sensitivity(model, graph, [batch])
    naive.assert_sensitivities_agree(sensitivity, model, batch, default_loss)


@pytest.mark.parametrize(
    ("head", "batch", "text"),
    [
        ("SequenceClassification", TEXT, "loss of a BertForSequenceClassification needs `labels`"),
        ("QuestionAnswering", {**TEXT, "start_positions": torch.zeros(3)}, "needs `end_positions`"),
        (
            "MaskedLM",
            {**TEXT, "labels": HALF.masked_fill(torch.tensor([[0], [1], [0]]) == 1, -100)},
            "sample 2",
        ),
        ("SequenceClassification", IDS, "batches that are dicts"),
        ("SequenceClassification", {**TEXT, "labels": torch.tensor([0, 5, 1])}, "label 5 is no class of the"),
        ("MaskedLM", {**TEXT, "labels": HALF + 1000}, "is no class of the model, which has 0 to"),
    ],
    ids=["no labels", "no end", "no label in a sample", "no dict", "no class", "no token"],
)
def test_what_is_missing_is_named(head, batch, text):
    with pytest.raises(InputError, match=text):
        default_loss(bert(head), batch)


@torch.no_grad()
def test_packed_documents_begin_with_nothing_to_predict():
    model, ids = helpers.language_model("llama"), helpers.tokens(2, 9)
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]]).repeat(2, 1)
    log = model(input_ids=ids, position_ids=positions, use_cache=False).logits.log_softmax(dim=-1)
    expected = []
    for row in range(2):
        parts = [-log[row, t, ids[row, t + 1]] for t in range(8) if positions[row, t + 1]]
        expected.append(torch.stack(parts).mean())
    losses = default_loss(model, {"input_ids": ids, "position_ids": positions})
    torch.testing.assert_close(losses, torch.stack(expected))


def test_what_is_planned_is_what_inc_converts(case, tmp_path):
    """By a copy: a converted model keeps no weights in the base format."""
    model, batch = copy.deepcopy(case[0]), case[1]
    plan = mp.tune(model, [batch], gain_fraction=0.5, out=tmp_path)
    with torch.no_grad():
        base = default_loss(model, batch)
        converted = mp.apply(model, plan, [batch])
        change = (default_loss(converted, batch) - base).abs().max()
    patched = {name for name, m in converted.named_modules() if type(m).__name__.startswith("Patched")}
    assert patched == set(plan.quantized) != set()
    assert change < 0.02
