"""What SECURITY.md promises of files that are loaded, and that CITATION.cff names this version."""

import ast
import configparser
from pathlib import Path

import pytest
import yaml

import inc_mp_plugin

PACKAGE = Path(inc_mp_plugin.__file__).parent
ROOT = Path(__file__).parent.parent
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
SAFE = {"np.load": ("allow_pickle", False), "torch.load": ("weights_only", True)}


def loads(text):
    """Calls that read what could be code: their names, and whether they are the safe form."""
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        if name in SAFE:
            key, value = SAFE[name]
            given = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
            yield name, given.get(key) is value
        elif name in ("yaml.load", "pickle.load", "pickle.loads", "eval", "exec", "joblib.load"):
            yield name, False


@pytest.mark.parametrize("name", FILES)
def test_no_file_is_loaded_that_could_run_code(name):
    assert [call for call, safe in loads((PACKAGE / name).read_text()) if not safe] == []


def test_an_unsafe_load_would_be_seen():
    calls = ("np.load(p)", "np.load(p, allow_pickle=False)", "torch.load(p, weights_only=False)")
    text = "\n".join((*calls, "yaml.load(p)", "yaml.safe_load(p)"))
    assert list(loads(text)) == [
        ("np.load", False),
        ("np.load", True),
        ("torch.load", False),
        ("yaml.load", False),
    ]


def test_the_citation_is_of_this_version():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == setup["metadata"]["version"]
    assert [paper["doi"].rpartition("arXiv.")[2] for paper in citation["references"]] == [
        "2505.13060",
        "2301.13330",
    ]
