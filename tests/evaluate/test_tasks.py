"""Tasks through lm-eval, against accuracy and perplexity computed with plain torch."""

import json
import math
import re
import runpy
from pathlib import Path

import helpers
import pytest
import torch

from inc_mp_plugin.core.errors import InputError, NonFiniteError

pytest.importorskip("lm_eval")

from transformers import AutoModelForCausalLM, AutoTokenizer

from inc_mp_plugin.evaluate import tasks as module
from inc_mp_plugin.evaluate.tasks import evaluate_tasks, load_tasks

MODEL = Path(__file__).resolve().parents[2] / "recipes" / "tiny-llama"
FOLDER = MODEL / "tasks"
LIMIT = 12
LENGTH = 256


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module", autouse=True)
def offline():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_HUB_OFFLINE", True)
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        yield


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def cloze():
    return load_tasks(["stdlib_cloze"], include_path=FOLDER)


@torch.no_grad()
def log_probabilities(model, ids):
    """Of every token but the first, given those before it, and whether it is the most likely one."""
    logits = model(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    targets = torch.tensor(ids[1:])
    return logits.gather(1, targets[:, None])[:, 0], logits.argmax(-1) == targets


def test_cloze_against_plain_torch(model, tokenizer, cloze):
    right, total = 0, 0.0
    for document in lines(FOLDER / "cloze.jsonl")[:LIMIT]:
        word = len(tokenizer(document["word"]).input_ids)
        logarithms, best = log_probabilities(
            model, tokenizer(document["context"] + document["word"]).input_ids
        )
        right += bool(best[-word:].all())
        total += logarithms[-word:].sum().item()
    metrics = evaluate_tasks(model, tokenizer, cloze, limit=LIMIT, batch_size=5)
    assert metrics == {
        "stdlib_cloze": {"acc": right / LIMIT, "perplexity": pytest.approx(math.exp(-total / LIMIT))}
    }
    assert 0 < right < LIMIT


def test_perplexity_against_plain_torch(model, tokenizer, monkeypatch):
    """In windows of the context's length; each token is predicted once."""
    texts = [line["text"] for line in lines(MODEL / "heldout.jsonl")[128:131]]
    total = 0.0
    for text in texts:
        ids = [tokenizer.eos_token_id, *tokenizer(text, verbose=False).input_ids]
        predicted = 0  # of ids[1:]
        while predicted < len(ids) - 1:
            new = min(LENGTH, len(ids) - 1 - predicted)
            stop = predicted + new + 1
            logarithms, _ = log_probabilities(model, ids[max(0, stop - LENGTH - 1) : stop])
            total += logarithms[-new:].sum().item()
            predicted += new
    size = sum(len(text.encode()) for text in texts)
    words = sum(len(re.split(r"\s+", text)) for text in texts)
    monkeypatch.chdir("/")  # the folder is found wherever one is
    metrics = evaluate_tasks(model, tokenizer, ["stdlib_perplexity"], include_path=FOLDER, limit=len(texts))
    assert metrics["stdlib_perplexity"] == {
        "word_perplexity": pytest.approx(math.exp(-total / words), rel=1e-4),
        "byte_perplexity": pytest.approx(math.exp(-total / size), rel=1e-5),
        "bits_per_byte": pytest.approx(-total / size / math.log(2), rel=1e-5),
    }


def test_the_model_leaves_as_it_came(model, tokenizer, cloze):
    model.train()
    model.model.layers[0].eval()
    tokenizer.pad_token = None
    before, config = helpers.state(model), model.config.to_dict()
    drawn = torch.random.get_rng_state()
    evaluate_tasks(model, tokenizer, cloze, limit=2)
    helpers.assert_same_state(before, helpers.state(model))
    assert model.config.to_dict() == config
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert tokenizer.pad_token is None
    model.eval()


def test_a_converted_tied_head_is_not_tied_again(tokenizer, cloze):
    """HFLM calls tie_weights, which would put the embedding's weight into the head."""
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    model.config.tie_word_embeddings = True
    head = model.lm_head.weight
    evaluate_tasks(model, tokenizer, cloze, limit=1)
    assert model.lm_head.weight is head
    assert model.lm_head.weight is not model.model.embed_tokens.weight


def test_a_shorter_context_changes_the_result(model, tokenizer, cloze):
    whole = evaluate_tasks(model, tokenizer, cloze, limit=4)
    short = evaluate_tasks(model, tokenizer, cloze, limit=4, max_length=16)
    assert short["stdlib_cloze"]["perplexity"] != whole["stdlib_cloze"]["perplexity"]


def test_nan_is_an_error_not_a_wrong_answer(tokenizer, cloze):
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="NaN on document 0 of task 'stdlib_cloze'"):
        evaluate_tasks(model, tokenizer, cloze, limit=1)
    with torch.no_grad():
        model.model.norm.weight.fill_(1e6)
    with pytest.raises(NonFiniteError, match="too large for a floating-point number"):
        evaluate_tasks(model, tokenizer, cloze, limit=2)


def test_metrics_of_the_papers_tasks():
    row = {"alias": "x", "acc,none": 0.5, "acc_stderr,none": "N/A", "acc_norm,none": 0.6, "sample_len": 3}
    assert module._metrics("hellaswag", row) == {"acc_norm": 0.6}
    assert module._metrics("piqa", row) == {"acc": 0.5}
    assert module._metrics("other", {"exact_match,strict": 1}) == {"exact_match,strict": 1.0}
    with pytest.raises(NonFiniteError, match="acc of task 'other' is nan"):
        module._metrics("other", {"acc,none": math.nan})


def test_errors_of_the_user(model, tokenizer, cloze, monkeypatch, tmp_path):
    with pytest.raises(InputError, match="no task was given"):
        load_tasks([])
    with pytest.raises(InputError, match="there is no folder"):
        load_tasks(["stdlib_cloze"], include_path=tmp_path / "nowhere")
    with pytest.raises(InputError, match="transformers, not a Linear"):
        evaluate_tasks(torch.nn.Linear(2, 2), tokenizer, cloze)
    monkeypatch.setitem(__import__("sys").modules, "lm_eval.tasks", None)
    with pytest.raises(InputError, match=r'pip install "inc_mp_plugin\[eval\]"'):
        load_tasks(["stdlib_cloze"])


def test_a_task_without_its_documents(tmp_path):
    """As for any task from the network where there is none."""
    text = "task: far\ndataset_path: nobody/nothing\noutput_type: loglikelihood\ntest_split: test\n"
    (tmp_path / "far.yaml").write_text(text)
    with pytest.raises(
        InputError, match=r"documents of task 'far' cannot be loaded .*include_path"
    ) as caught:
        load_tasks(["far"], include_path=tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_names_of_lm_evals_own_tasks():
    with pytest.raises(InputError, match="no task 'lambada_opnai'; near: lambada_openai"):
        load_tasks(["lambada_opnai"], include_path=FOLDER)
    with pytest.raises(InputError, match="documents of task 'piqa' cannot be loaded"):
        load_tasks(["stdlib_cloze", "piqa"], include_path=FOLDER)


def test_the_shipped_documents(tokenizer):
    documents = lines(FOLDER / "cloze.jsonl")
    assert 150 <= len(documents) <= 400
    heldout = [line["text"] for line in lines(MODEL / "heldout.jsonl")]
    for document in documents:
        context, word = document["context"], document["word"]
        assert not context[-1].isspace()
        assert re.search(rf"\b{word.strip()}\b", context)
        assert any(text.startswith(context + word) for text in heldout[128:])
        assert len(tokenizer(context + word).input_ids) <= LENGTH
    assert sum(path.stat().st_size for path in FOLDER.iterdir() if path.is_file()) < 600_000


@pytest.mark.slow
def test_the_documents_are_made_the_same_again():
    documents = runpy.run_path(str(FOLDER / "make_tasks.py"))["documents"]()
    assert documents == lines(FOLDER / "cloze.jsonl")
