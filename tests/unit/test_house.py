"""The house stays one that others can read: short modules, short functions, and a short way through a call."""

from __future__ import annotations

import ast
import io
import tokenize
from pathlib import Path

import pytest

import hybridiff

PACKAGE = Path(hybridiff.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

READING_ORDER = [
    "pipeline.py",
    "run.py",
    "denoiser/hooks.py",
    "denoiser/call.py",
    "strategies/base.py",
    "strategies/cfg.py",
    "strategies/switching.py",
    "strategies/hybrid.py",
    "strategies/steps/executor.py",
    "strategies/steps/full.py",
    "strategies/steps/cached.py",
    "strategies/evaluator.py",
    "denoiser/rows.py",
    "schedule/kinds.py",
    "schedule/plan.py",
    "schedule/guided.py",
    "distributed/channel.py",
]
"""One call of `hybrid`, from the pipeline to the message, as docs/architecture.md walks through it."""

MOST_LINES, MOST_LINES_OF_A_FUNCTION, MOST_LINES_TO_READ, MOST_LINES_OF_CODE = 300, 40, 2000, 15100


def lines_of(source: Path) -> int:
    return len(source.read_text().splitlines())


def lines_of_code(source: Path) -> int:
    """Lines that are not blank, comment or docstring."""
    text = source.read_text()
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT):
            code |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            assert node.end_lineno is not None
            code -= set(range(node.lineno, node.end_lineno + 1))
    return len(code & {number for number, line in enumerate(text.splitlines(), start=1) if line.strip()})


@pytest.mark.parametrize("source", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_and_functions_are_short(source: Path) -> None:
    assert lines_of(source) <= MOST_LINES
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno + 1 <= MOST_LINES_OF_A_FUNCTION, node.name


def test_the_package_is_small() -> None:
    assert sum(map(lines_of_code, MODULES)) < MOST_LINES_OF_CODE


def test_one_hybrid_call_is_a_short_read() -> None:
    assert sum(lines_of(PACKAGE / name) for name in READING_ORDER) < MOST_LINES_TO_READ
    document = (PACKAGE.parents[1] / "docs" / "architecture.md").read_text()
    assert [name for name in READING_ORDER if f"`{name}`" not in document] == []
