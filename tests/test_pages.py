"""The pages of the site that follow from the code are those in the repository."""

import sys
from pathlib import Path

import pytest

from inc_mp_plugin.pipeline.recipe import Recipe

DOCS = Path(__file__).parents[1] / "docs"
sys.path.insert(0, str(DOCS))
import make_pages  # noqa: E402


@pytest.mark.skipif(
    "| `KEY=VALUE` |  |  |" in make_pages.commands_page(), reason="typer does not tell what arguments mean"
)
@pytest.mark.parametrize("name", ["keys.md", "commands.md", "api.md"])
def test_pages_are_as_the_code_has_them(name):
    assert (DOCS / "pages" / name).read_text() == make_pages.pages()[name], "run python docs/make_pages.py"


def test_every_key_has_a_meaning():
    sections = [Recipe, *filter(None, map(make_pages._section, Recipe.model_fields.values()))]
    assert len(sections) == 7
    for section in sections:
        for name, field in section.model_fields.items():
            assert field.description, name
