"""Recipes over data of every kind: the losses of a run are those of transformers on the same samples."""

import json

import capabilities
import datasets
import helpers
import numpy as np
import pytest
import torch
import transformers
import yaml
from helpers import call, told
from PIL import Image

from inc_mp_plugin.stages.sensitivity import read_sensitivity

QUESTIONS = ["read a file", "write a list", "open the door", "sort numbers", "close it", "print the name"]
ANSWERS = [
    "open(path).read()",
    "file.write(text)",
    "door.open()",
    "sorted(numbers)",
    "x.close()",
    "print(name)",
]
CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def small_model(folder, model, tokenizer):
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory):
    """A small language model whose tokenizer has a chat template."""
    folder = tmp_path_factory.mktemp("chat")
    tokenizer = transformers.AutoTokenizer.from_pretrained(helpers.SHIPPED)
    tokenizer.chat_template = CHAT
    transformers.set_seed(0)
    small_model(folder, transformers.LlamaForCausalLM(helpers.small_config()), tokenizer)
    return folder / "model"


def tuned(folder, model, data, **calibration):
    """The losses of a run over six samples in batches of two."""
    settings = {"data": str(data), "samples": 6, "sequence_length": 48, "batch_size": 2, **calibration}
    recipe = {
        "model": {"name_or_path": str(model), "dtype": "fp32"},
        "calibration": settings,
        "tau": 0.01,
        "targets": ["cpu-qdq"],
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    result = call("tune", folder / "recipe.yaml", "--out", folder / "out")
    assert result.exit_code == 0, result.output
    assert (folder / "out" / "configs" / "cpu-qdq.json").exists()
    return read_sensitivity(folder / "out").loss


def of_transformers(model, rows):
    """The loss that transformers computes of each sample: (ids, labels) or arguments."""
    model = model.eval()
    with torch.no_grad():
        return [model(**row).loss.item() for row in rows]


def rows_of(tokenizer, texts, labels=None):
    for number, text in enumerate(texts):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        marks = ids.clone()
        if labels is not None:
            marks[:, : len(tokenizer(labels[number])["input_ids"])] = -100
        yield {"input_ids": ids, "labels": marks}


def test_answers_of_conversations_in_parquet(tmp_path, chat_model):
    turns = [
        [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        for question, answer in zip(QUESTIONS, ANSWERS, strict=True)
    ]
    datasets.Dataset.from_dict({"chat": turns}).to_parquet(tmp_path / "data.parquet")
    losses = tuned(tmp_path, chat_model, tmp_path / "data.parquet", column="chat", labels="answers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(chat_model)
    prompts = [f"<user>{question}<assistant>" for question in QUESTIONS]
    texts = [prompt + answer for prompt, answer in zip(prompts, ANSWERS, strict=True)]
    model = transformers.AutoModelForCausalLM.from_pretrained(chat_model)
    assert losses == pytest.approx(of_transformers(model, rows_of(tokenizer, texts, prompts)), rel=1e-4)


def test_joined_texts(tmp_path, chat_model):
    """Mean over the tokens of a sample that have a token of their own text before them."""
    (tmp_path / "data.csv").write_text("text\n" + "\n".join(QUESTIONS * 8))
    losses = tuned(tmp_path, chat_model, tmp_path / "data.csv", pack=True, sequence_length=24)
    model = transformers.AutoModelForCausalLM.from_pretrained(chat_model).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(chat_model)
    flat = [(token, at) for text in QUESTIONS * 8 for at, token in enumerate(tokenizer(text)["input_ids"])]
    for number, loss in enumerate(losses):
        row = flat[24 * number : 24 * number + 24]
        starts = [0, *(n for n in range(1, 24) if row[n][1] == 0), 24]
        parts = [[token for token, _ in row[a:b]] for a, b in zip(starts, starts[1:], strict=False)]
        pairs = [(torch.tensor([part]), len(part) - 1) for part in parts if len(part) > 1]
        with torch.no_grad():
            total = sum(model(input_ids=ids, labels=ids).loss.item() * count for ids, count in pairs)
        assert loss == pytest.approx(total / sum(count for _, count in pairs), rel=1e-4)


def test_prompts_and_answers_of_an_encoder_decoder(tmp_path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(helpers.SHIPPED)
    config = transformers.T5Config(
        vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4,
        decoder_start_token_id=0, pad_token_id=0,
    )  # fmt: skip
    transformers.set_seed(1)
    small_model(tmp_path, transformers.T5ForConditionalGeneration(config), tokenizer)
    lines = [{"prompt": q, "completion": a} for q, a in zip(QUESTIONS, ANSWERS, strict=True)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, lines)))
    losses = tuned(tmp_path, tmp_path / "model", tmp_path / "data.jsonl")
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "model")
    rows = [
        {
            name: torch.tensor([tokenizer(line[key])["input_ids"]])
            for name, key in (("input_ids", "prompt"), ("labels", "completion"))
        }
        for line in lines
    ]
    assert losses == pytest.approx(of_transformers(model, rows), rel=1e-4)
    (tmp_path / "data.jsonl").write_text('{"text": "no answer"}\n' * 6)
    result = call("tune", tmp_path / "recipe.yaml", "--out", tmp_path / "other")
    assert result.exit_code == 2
    assert "line 1: an encoder-decoder model writes an answer to a prompt; give prompt and" in told(result)


def test_texts_with_classes(tmp_path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(helpers.SHIPPED)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    config = transformers.BertConfig(**sizes, vocab_size=len(tokenizer), num_labels=3)
    transformers.set_seed(3)
    small_model(tmp_path, transformers.BertForSequenceClassification(config), tokenizer)
    rows = [{"text": text, "label": number % 3} for number, text in enumerate(QUESTIONS)]
    datasets.Dataset.from_list(rows).to_csv(tmp_path / "data.csv", index=False)
    losses = tuned(tmp_path, tmp_path / "model", tmp_path / "data.csv")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    rows = [
        {
            "input_ids": torch.tensor([tokenizer(row["text"])["input_ids"]]),
            "labels": torch.tensor([row["label"]]),
        }
        for row in rows
    ]
    assert losses == pytest.approx(of_transformers(model, rows), rel=1e-4)
    for line, message in [
        (
            '{"text": "a b c"}',
            'line 1: the model gives texts a class, and there is no "label" that is a number',
        ),
        ('{"text": "a b c", "label": 3}', "line 1: label 3 is no class of the model, which has 0 to 2"),
        ('{"text": "a b c", "label": 1.5}', "line 1: label 1.5 is no class of the model, which has 0 to 2"),
        (
            '{"text": "a b c", "label": [0, 1]}',
            "line 1: 2 labels, and the model gives 3 numbers; give as many",
        ),
    ]:
        (tmp_path / "bad.jsonl").write_text(f"{line}\n" * 6)
        result = call(
            "tune",
            tmp_path / "recipe.yaml",
            f"calibration.data={tmp_path}/bad.jsonl",
            "--out",
            tmp_path / "b",
        )
        assert result.exit_code == 2
        assert message in told(result)


def llava(folder):
    """A small LLaVA with its processor, and six pictures."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(helpers.SHIPPED)
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    vision = transformers.CLIPVisionConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        image_size=8,
        patch_size=4,
    )
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**sizes, num_key_value_heads=2, vocab_size=len(tokenizer)),
        vision_config=vision,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    transformers.set_seed(2)
    transformers.LlavaForConditionalGeneration(config).save_pretrained(folder / "model")
    size = {"height": 8, "width": 8}
    pictures = transformers.CLIPImageProcessor(size={"shortest_edge": 8}, crop_size=size)
    processor = transformers.LlavaProcessor(
        image_processor=pictures, tokenizer=tokenizer, patch_size=4, vision_feature_select_strategy="default",
        image_token="<image>", num_additional_image_tokens=1,
        chat_template="{% for m in messages %}<{{ m.role }}>"
        "{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for c in m.content %}{{ c.text if c.type == 'text' else '<image>' }}{% endfor %}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}",
    )  # fmt: skip
    processor.save_pretrained(folder / "model")
    noise = np.random.default_rng(0)
    for number in range(6):
        Image.fromarray(noise.integers(0, 255, (10, 12, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return processor


def seen(number):
    """A conversation about a picture."""
    parts = [{"type": "image", "image": f"{number}.png"}, {"type": "text", "text": QUESTIONS[number]}]
    return [{"role": "user", "content": parts}, {"role": "assistant", "content": ANSWERS[number]}]


@capabilities.images_in_a_trace("llava")
@pytest.mark.parametrize("labels", ["all", "answers"])
def test_conversations_about_pictures(tmp_path, labels):
    """Ids, pixels and labels by the processor, sample by sample; an image's tokens are not predicted."""
    processor = llava(tmp_path)
    lines = [json.dumps({"messages": seen(number)}) for number in range(6)]
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    losses = tuned(tmp_path, tmp_path / "model", tmp_path / "data.jsonl", labels=labels)
    model = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path / "model")
    rows = []
    for number in range(6):
        prompt = f"<user><image>{QUESTIONS[number]}"
        picture = Image.open(tmp_path / f"{number}.png")
        row = processor(text=f"{prompt}<assistant>{ANSWERS[number]}", images=picture, return_tensors="pt")
        marks = row["input_ids"].masked_fill(row["input_ids"] == model.config.image_token_id, -100)
        if labels == "answers":
            asked = processor(text=f"{prompt}<assistant>", images=picture, return_tensors="pt")["input_ids"]
            marks[:, : asked.shape[1]] = -100
        rows.append({**row, "labels": marks})
    assert losses == pytest.approx(of_transformers(model, rows), rel=1e-4)


@capabilities.images_in_a_trace("llava")
def test_samples_with_one_picture_and_with_two(tmp_path):
    """The pictures of a batch stand end to end, so that every sample is a batch of its own."""
    llava(tmp_path)
    lines = [{"messages": seen(number)} for number in range(6)]
    lines[3]["messages"][0]["content"].insert(0, {"type": "image", "image": "0.png"})
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert len(tuned(tmp_path, tmp_path / "model", tmp_path / "data.jsonl")) == 6


def test_a_masked_language_model_is_for_python(tmp_path):
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, vocab_size=2048
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(helpers.SHIPPED)
    small_model(tmp_path, transformers.BertForMaskedLM(config), tokenizer)
    with pytest.raises(
        AssertionError, match="a recipe cannot make the labels of a BertForMaskedLM; give mp.tune"
    ):
        tuned(tmp_path, tmp_path / "model", helpers.SHIPPED / "calibration.jsonl")


@pytest.mark.parametrize(
    ("picture", "first", "length", "message"),
    [
        (None, 0, 48, "the image {folder}/0.png does not exist; its path is beside the data"),
        ("no picture", 0, 48, "line 1: the image {folder}/0.png cannot be read"),
        (..., "a text", 48, "line 1: no image, but other samples have one"),
        (..., 0, 4, "24 tokens with its images, and a sample with images is not cut; give"),
    ],
    ids=["missing", "damaged", "mixed", "long"],
)
def test_pictures_that_cannot_be_used(tmp_path, picture, first, length, message):
    llava(tmp_path)
    lines = [json.dumps({"messages": seen(number)}) for number in range(6)]
    if isinstance(first, str):
        lines[0] = json.dumps({"text": first})
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    if picture is None:
        (tmp_path / "0.png").unlink()
    elif isinstance(picture, str):
        (tmp_path / "0.png").write_text(picture)
    with pytest.raises(AssertionError) as raised:
        tuned(tmp_path, tmp_path / "model", tmp_path / "data.jsonl", sequence_length=length)
    assert message.format(folder=tmp_path) in " ".join(str(raised.value).split())
