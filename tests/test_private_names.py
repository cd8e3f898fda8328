"""What is private in a library stands in the one file of ours that is named after it, and nowhere else."""

import ast
import re
import sys
from pathlib import Path

import pytest

import inc_mp_plugin

PACKAGE = Path(inc_mp_plugin.__file__).parent
FILES = sorted(p.relative_to(PACKAGE).as_posix() for p in PACKAGE.rglob("*.py"))
OURS = [f for f in FILES if f != "inc/backend.py" and not f.startswith("libraries/")]
DOCUMENTED = {"_replace", "_asdict", "_fields", "_make"}  # of named tuples
OWN_TEXTS = {"_ip_mse_prepared"}


def is_private(name):
    """Whether a part of a dotted name begins with one underscore."""
    dotted = re.fullmatch(r"\w+(\.\w+)*", name)
    return bool(dotted) and any(re.match(r"_[A-Za-z]", p) and p not in DOCUMENTED for p in name.split("."))


def own_names(tree):
    """Names that a file defines: functions, classes, variables, and attributes of its own objects."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Name(id=name, ctx=ast.Store()):
                yield name
            case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name, ctx=ast.Store()):
                yield name


def imported(tree):
    """Full names of what a file imports, with their lines, and the names it has them by."""
    for node in ast.walk(tree):
        for alias in getattr(node, "names", ()) if isinstance(node, ast.Import | ast.ImportFrom) else ():
            module = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            yield node.lineno, module + alias.name, alias.asname or alias.name


def foreign_names(text):
    """Private names of others, with their lines: imported, as attributes of anything, or as texts."""
    tree = ast.parse(text)
    own, names = set(own_names(tree)), list(imported(tree))
    standard = {short for _, name, short in names if name.split(".")[0] in sys.stdlib_module_names}
    for line, name, _ in names:
        if is_private(name) and not name.startswith("inc_mp_plugin."):
            yield line, name
    formatted = {id(part) for n in ast.walk(tree) if isinstance(n, ast.JoinedStr) for part in n.values}
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id=base)) if base in standard:
                pass
            case ast.Attribute(attr=name) if is_private(name) and name not in own:
                yield node.lineno, name
            case ast.Constant(value=str(text)) if id(node) not in formatted:
                if is_private(text) and text not in OWN_TEXTS:
                    yield node.lineno, text


@pytest.mark.parametrize("name", OURS)
def test_no_private_name_of_a_library(name):
    found = list(foreign_names((PACKAGE / name).read_text()))
    assert found == [], f"{name}: make functions of them in libraries/, with the reason, a version and a test"


def test_the_files_of_libraries_are_where_they_are():
    """Else the test above would show nothing."""
    where = {name for name in FILES if list(foreign_names((PACKAGE / name).read_text()))}
    places = {
        f"libraries/{library}.py" for library in ("accelerate", "torch", "transformers", "lm_eval", "logs")
    }
    assert where == {"inc/backend.py", *places}


def test_every_way_to_a_private_name_is_seen():
    seen = foreign_names(
        "from torch import _C\n"
        "from torch._ops import OpOverload\n"
        "import torch._dynamo, os\n"
        "model._modules, os._exit(0), gemm._replace, torch._dynamo\n"
        "getattr(config, '_commit_hash')\n"
        "for name in ('_loglikelihood_tokens', 'torch.utils._pytree', f'{x}_curve'): pass\n"
        "class Own:\n    def __init__(self): self._own = self.__dict__; other._own\n"
        "from inc_mp_plugin.libraries import _torch\n"
    )
    assert sorted(seen) == [
        (1, "torch._C"),
        (2, "torch._ops.OpOverload"),
        (3, "torch._dynamo"),
        (4, "_dynamo"),
        (4, "_modules"),
        (5, "_commit_hash"),
        (6, "_loglikelihood_tokens"),
        (6, "torch.utils._pytree"),
    ]


@pytest.mark.parametrize("name", ["torch", "transformers", "lm_eval", "neural_compressor"])
def test_every_function_says_with_what_it_was_checked(name):
    for node in ast.parse((PACKAGE / f"libraries/{name}.py").read_text()).body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            assert re.search(r"\d\.\d", ast.get_docstring(node)), f"{node.name} names no version"
