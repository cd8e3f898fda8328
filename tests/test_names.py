"""Names: nouns of the field, where a word that stands for anything would do for a value, too."""

import ast
from pathlib import Path

import pytest

import inc_mp_plugin

PACKAGE = Path(inc_mp_plugin.__file__).parent
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
TELL_NOTHING = {"able", "found", "listed", "low", "one", "served", "wanted"}


def names(tree):
    """Yield what a file names: variables, arguments, functions, classes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name


@pytest.mark.parametrize("name", FILES)
def test_names_tell_what_they_hold(name):
    tree = ast.parse((PACKAGE / name).read_text())
    # The fields of artefacts keep the names that files have.
    fields = {
        statement.target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for statement in node.body
        if isinstance(statement, ast.AnnAssign)
    }
    assert not {name for name in names(tree) if name.lower().strip("_") in TELL_NOTHING} - fields
