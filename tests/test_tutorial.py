"""docs/pages/tutorial.md, word for word: the plan costs on other samples what was predicted."""

import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "pages" / "tutorial.md").read_text(), re.DOTALL)


def test_the_tutorial(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "recipes" / "tiny-llama", tmp_path / "recipes" / "tiny-llama")
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in BLOCKS:
        exec(compile(block, "tutorial.md", "exec"), names)
    assert len(names["graph"].ops) == 73
    assert names["plan"].predicted_kl <= 0.001
    assert names["kl"] == pytest.approx(names["plan"].predicted_kl, rel=0.25)
    assert (tmp_path / "frontier.png").stat().st_size > 10_000
