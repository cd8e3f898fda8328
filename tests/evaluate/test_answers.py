"""Answers to tasks, against log-probabilities of plain runs, one answer at a time."""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from inc_mp_plugin.evaluate.answers import Answers, change_of
from inc_mp_plugin.evaluate.interval import mean_interval

TASKS = Path(__file__).parents[2] / "recipes" / "smollm2-135m" / "tasks"


@torch.no_grad()
def log_probability(model, tokenizer, context, answer):
    """Sum over the tokens of an answer, and whether each is the most likely one."""
    first, whole = (tokenizer(text).input_ids for text in (context, context + answer))
    rows = model(torch.tensor([whole])).logits[0].log_softmax(-1)
    places = range(len(first), len(whole))
    values = [float(rows[i - 1, whole[i]]) for i in places]
    return sum(values), all(int(rows[i - 1].argmax()) == whole[i] for i in places)


def test_answers_of_both_forms(project):
    pytest.importorskip("lm_eval")
    from inc_mp_plugin.evaluate.tasks import answers_to, evaluate_tasks, load_tasks

    model = transformers.AutoModelForCausalLM.from_pretrained(project / "model").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(project / "model")
    tasks = load_tasks(["prose_cloze", "prose_endings"], include_path=TASKS)
    scores = evaluate_tasks(model, tokenizer, tasks, limit=5, max_length=512)
    answers = answers_to(tasks)
    assert answers.keys() == {"prose_cloze", "prose_endings"}
    for name, given in answers.items():
        assert given.right.mean() == pytest.approx(scores[name]["acc"])
        documents = [tasks.loaded["tasks"][name].dataset["test"][i] for i in range(5)]
        for number, document in enumerate(documents):
            texts = [f" {end}" for end in document.get("endings", [])] or [document["word"]]
            right = document.get("label", 0)
            each = [log_probability(model, tokenizer, document["context"], text) for text in texts]
            values = [value for value, _ in each]
            wrong = [value for place, value in enumerate(values) if place != right]
            margin = values[right] - max(wrong, default=0.0)
            assert given.margin[number] == pytest.approx(margin, abs=1e-3)
            choice = int(np.argmax(values)) if wrong else int(each[0][1])
            assert given.choice[number] == choice
            assert given.right[number] == (choice == right if wrong else choice)


def test_changes_by_hand():
    base = Answers(np.array([0.0, 1, 2, 3]), np.array([1.0, 1, 0, 0]), np.array([1.0, 2, -1, -2]))
    other = Answers(np.array([0.0, 2, 2, 1]), np.array([1.0, 0, 0, 1]), np.array([1.5, -1, -1, 1]))
    change = change_of(other, base, 0.95)
    assert (change.documents, change.flips, change.accuracy) == (4, 0.5, 0.0)
    assert change.margin == pytest.approx((0.5 - 3 + 0 + 3) / 4)
    assert change.margin_rms == pytest.approx(((0.25 + 9 + 0 + 9) / 4) ** 0.5)
    assert change.margin_interval == mean_interval(other.margin - base.margin, 0.95)


def test_the_interval_of_a_mean_holds_it_as_often_as_it_says():
    draw = np.random.default_rng(0)
    ends = [mean_interval(draw.exponential(size=300) - 1.0, 0.9) for _ in range(400)]
    assert 0.86 < np.mean([low <= 0.0 <= high for low, high in ends]) < 0.94
