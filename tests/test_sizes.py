"""Files, classes and parameter lists stay small."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(
    file for folder in ("neat_backend", "benchmarks", "tools", "tests") for file in (ROOT / folder).rglob("*.py")
)
MOST_LINES_OF_A_FILE, MOST_LINES_OF_A_CLASS, MOST_PARAMETERS = 500, 300, 8

# A command of the command line has a parameter for each of its options.
COMMANDS = {
    "neat_backend/cli/exporting.py": {"export"},
    "neat_backend/experiments/commands.py": {"run", "plot", "clusterability", "table"},
    "benchmarks/approximate.py": {"approximate"},
    "benchmarks/encode.py": {"encode"},
    "benchmarks/estimates.py": {"estimates"},
    "benchmarks/mistakes.py": {"mistakes"},
    "benchmarks/paper.py": {"paper"},
    "benchmarks/query.py": {"query"},
    "benchmarks/rerank.py": {"rerank"},
    "benchmarks/train.py": {"train"},
}


def nodes(file: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(file.read_text()))


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Number of parameters, without self and cls."""
    found = [*function.args.posonlyargs, *function.args.args]
    return len(found) - (bool(found) and found[0].arg in ("self", "cls")) + len(function.args.kwonlyargs)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_a_file_is_small(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= MOST_LINES_OF_A_FILE
    for node in nodes(file):
        if isinstance(node, ast.ClassDef):
            assert (node.end_lineno or 0) - node.lineno < MOST_LINES_OF_A_CLASS, node.name


def test_only_commands_have_many_parameters() -> None:
    many: dict[str, set[str]] = {}
    for file in FILES:
        for node in nodes(file):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and parameters(node) > MOST_PARAMETERS:
                many.setdefault(file.relative_to(ROOT).as_posix(), set()).add(node.name)
    assert many == COMMANDS
