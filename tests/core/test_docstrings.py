"""Docstrings say what a function raises."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROOMS = ("vqedge", "export", "runtime")
UNTOLD = {"typer.Exit", "NotImplementedError"}  # an exit code; an abstract method


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    """Public functions and methods, without those inside of functions."""
    for node in tree.body:
        for item in [node, *node.body] if isinstance(node, ast.ClassDef) else [node]:
            if isinstance(item, ast.FunctionDef) and not item.name.startswith("_"):
                yield item


def raised(function: ast.FunctionDef) -> set[str]:
    """What its own body raises, as written."""
    errors = (
        node.exc.func if isinstance(node.exc, ast.Call) else node.exc
        for node in ast.walk(function)
        if isinstance(node, ast.Raise)
    )
    return {ast.unparse(error) for error in errors if error is not None}


def test_functions_that_raise_say_so() -> None:
    paths = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
    found = [
        f"{path.relative_to(ROOT)}:{function.lineno} {function.name}"
        for path in paths
        for function in functions(ast.parse(path.read_text(encoding="utf-8")))
        if raised(function) - UNTOLD and "Raises:" not in (ast.get_docstring(function) or "")
    ]
    assert len(paths) > 100 and found == []
