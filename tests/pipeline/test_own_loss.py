"""A recipe's own loss: refused without permission, and then what is differentiated and measured."""

import json

import helpers
import pytest
import torch
import transformers
from helpers import call, told

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.pipeline.own_loss import loss_beside, loss_fingerprint, loss_of
from inc_mp_plugin.stages.sensitivity import read_sensitivity

CODE = '''
from scale import FACTOR

def squares(model, batch):
    """Mean square of the logits, per sample."""
    return FACTOR * model(input_ids=batch["input_ids"]).logits.square().mean(dim=(1, 2))
'''


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A project whose recipe names a loss beside it."""
    folder = helpers.small_project(tmp_path_factory.mktemp("own"))
    (folder / "my_loss.py").write_text(CODE)
    (folder / "scale.py").write_text("FACTOR = 3.0\n")
    recipe = folder / "recipe.yaml"
    recipe.write_text(recipe.read_text() + "loss: my_loss:squares\n")
    return folder


def test_code_runs_only_where_it_is_allowed(own, tmp_path):
    result = call("tune", own / "recipe.yaml", "--out", tmp_path / "out")
    assert result.exit_code == 2
    line = f"the recipe's loss is code, in {own / 'my_loss.py'}; read it, then give the same command with"
    assert line in told(result)
    assert not (tmp_path / "out").exists()


def test_its_losses_are_what_the_plan_bounds(own, tmp_path):
    """Losses and their prediction against the same function, called by hand."""
    out = tmp_path / "out"
    result = call("tune", own / "recipe.yaml", "tau=0.01", "--allow-code", "--out", out)
    assert result.exit_code == 0, result.output
    model = transformers.AutoModelForCausalLM.from_pretrained(own / "model").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(own / "model")
    texts = [json.loads(line)["text"] for line in (own / "calibration.jsonl").open()][:6]
    with torch.no_grad():
        losses = []
        for text in texts:
            ids = torch.tensor([tokenizer(text, truncation=True, max_length=32)["input_ids"]])
            losses.append(3.0 * model(input_ids=ids).logits.square().mean().item())
    assert read_sensitivity(out).loss == pytest.approx(losses, rel=1e-4)
    refused = call("validate", out)
    assert refused.exit_code == 2
    assert "--allow-code" in told(refused)
    assert call("validate", out, "--allow-code").exit_code == 0
    assert call("solve", out, "tau=0.02").exit_code == 0


@pytest.mark.parametrize(
    ("loss", "content", "message"),
    [
        ("{folder}/other:squares", None, r"there is no file .*other.py nor .*other.py; write it beside"),
        (
            "{folder}/own:cubes",
            "squares = 3",
            r"own.py has no function cubes; define cubes\(model, batch\) there",
        ),
        ("{folder}/own:squares", "squares = 3", r"own.py has no function squares; define"),
        ("{folder}/own.py:squares", "import no_such_module", r"own.py cannot be imported: No module named"),
        ("{folder}/own:squares", "def squares(", r"own.py cannot be imported: '\(' was never closed"),
    ],
)
def test_what_is_no_loss_is_one_line(tmp_path, loss, content, message):
    if content is not None:
        (tmp_path / "own.py").write_text(content)
    with pytest.raises(InputError, match=message):
        loss_of(loss.format(folder=tmp_path), allow_code=True)


def test_a_partial_function_and_modules_that_are_imported_later(tmp_path):
    """As people write them: a class of settings, a partial, an import within a function."""
    (tmp_path / "later.py").write_text("FACTOR = 2.0\n")
    (tmp_path / "mine.v2.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "from functools import partial\n"
        "@dataclass\nclass S:\n    a: float = 1.0\n"
        "def scaled(model, batch, by):\n    from later import FACTOR\n    return by * FACTOR\n"
        "loss = partial(scaled, by=3.0)\n"
    )
    name = f"{tmp_path}/mine.v2:loss"
    assert loss_of(name, allow_code=True)(None, None) == 6.0
    before = loss_fingerprint(name)
    (tmp_path / "later.py").write_text("FACTOR = 3.0\n")
    assert loss_fingerprint(name) != before


def test_the_file_is_beside_the_recipe_or_in_the_working_folder(tmp_path, monkeypatch):
    beside = tmp_path / "recipes"
    beside.mkdir()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.py").write_text("")
    (beside / "both.py").write_text("")
    (tmp_path / "both.py").write_text("")
    assert loss_beside("both:f", beside) == f"{beside / 'both.py'}:f"
    assert loss_beside("here.py:f", beside) == "here.py:f"
    assert loss_beside("nowhere:f", beside) == f"{beside / 'nowhere.py'}:f"


@pytest.mark.parametrize("value", ["mse", "module:3", "my loss:a-b", ":f"])
def test_other_words_are_refused(project, tmp_path, value):
    result = call("tune", project / "recipe.yaml", f"loss={value}", "--out", tmp_path / "out")
    assert result.exit_code == 2
    said = f"override loss={value}: {value!r} is not a loss; give auto, or module:function of a Python"
    assert said in told(result)
