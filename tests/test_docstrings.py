"""Docstrings: a verb for a function, a noun for a value, and the arguments where there are several."""

import ast
from pathlib import Path

import pytest

import inc_mp_plugin

PACKAGE = Path(inc_mp_plugin.__file__).parent
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
CALLED_BY_OTHERS = {
    "bgemm_attention",
    "attention_by_heads",
    "ip_mse_entry",
}  # transformers and INC give them that many
QUESTIONS = {"how", "what", "where", "whether", "which", "who", "why"}
VERBS = {
    *(
        "add",
        "allow",
        "append",
        "apply",
        "arrange",
        "ask",
        "bound",
        "build",
        "calibrate",
        "call",
        "capture",
        "cast",
    ),
    *(
        "check",
        "choose",
        "clear",
        "close",
        "collect",
        "combine",
        "compare",
        "compute",
        "convert",
        "copy",
        "correct",
        "count",
    ),
    *(
        "cut",
        "decide",
        "decode",
        "describe",
        "divide",
        "do",
        "differentiate",
        "draw",
        "encode",
        "end",
        "enter",
        "escape",
        "estimate",
    ),
    *(
        "expand",
        "export",
        "expose",
        "extract",
        "find",
        "fit",
        "follow",
        "forget",
        "format",
        "gather",
        "give",
        "go",
    ),
    *(
        "group",
        "hash",
        "hear",
        "hold",
        "identify",
        "interpret",
        "invert",
        "join",
        "judge",
        "keep",
        "lay",
        "leave",
    ),
    *(
        "let",
        "limit",
        "list",
        "load",
        "lock",
        "log",
        "look",
        "lower",
        "make",
        "map",
        "mark",
        "match",
        "measure",
    ),
    *(
        "merge",
        "move",
        "multiply",
        "name",
        "normalize",
        "number",
        "observe",
        "open",
        "order",
        "parse",
        "partition",
    ),
    *(
        "place",
        "plan",
        "predict",
        "prepare",
        "price",
        "print",
        "put",
        "quantize",
        "raise",
        "read",
        "record",
        "refuse",
    ),
    *(
        "register",
        "release",
        "remove",
        "render",
        "repeat",
        "replace",
        "report",
        "resolve",
        "restore",
        "return",
    ),
    *(
        "reuse",
        "round",
        "run",
        "save",
        "say",
        "scale",
        "schedule",
        "score",
        "send",
        "set",
        "share",
        "shorten",
    ),
    *(
        "show",
        "silence",
        "skip",
        "solve",
        "sort",
        "split",
        "start",
        "stop",
        "sum",
        "switch",
        "take",
        "tell",
        "test",
    ),
    *(
        "time",
        "tokenize",
        "train",
        "translate",
        "turn",
        "undo",
        "unite",
        "wait",
        "walk",
        "warm",
        "warn",
        "watch",
    ),
    *("wrap", "write", "yield"),
}


def documented(name):
    """Every class and function of a file that has a docstring, with its first word in lower case."""
    for node in ast.walk(ast.parse((PACKAGE / name).read_text())):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            text = ast.get_docstring(node)
            yield node, "".join(c for c in text.split()[0].lower() if c.isalpha()), text


def is_value(node):
    """A property is read like a value, and so is a class."""
    return isinstance(node, ast.ClassDef) or any(
        "property" in ast.unparse(one) for one in node.decorator_list
    )


@pytest.mark.parametrize("name", FILES)
def test_a_function_begins_with_a_verb_and_a_value_with_a_noun(name):
    for node, word, _ in documented(name):
        assert word not in QUESTIONS, f"{node.name}: {word}"
        if not is_value(node):
            assert word in VERBS, f"{node.name}: {word}"


@pytest.mark.parametrize("name", FILES)
def test_public_functions_of_several_arguments_describe_them(name):
    for node, _, text in documented(name):
        if isinstance(node, ast.ClassDef) or node.name.startswith("_"):
            continue
        positional = [a.arg for a in node.args.posonlyargs + node.args.args if a.arg not in ("self", "cls")]
        assert len(positional) <= 4 or node.name in CALLED_BY_OTHERS, node.name
        # Of a command, typer shows the help of each argument.
        if len(positional) + len(node.args.kwonlyargs) >= 3 and not name.startswith("cli/"):
            assert "Args:" in text, node.name
