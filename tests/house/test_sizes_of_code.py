"""Keep classes, functions and modules so small that each is read at once. Lines are counted from def to end, docstrings too."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(
    [
        ROOT / "train.py",
        *(file for room in ("flash_grpo", "analysis", "hydra_plugins") for file in (ROOT / room).rglob("*.py")),
    ]
)
FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef
LONGEST_CLASS, LONGEST_FUNCTION, LONGEST_MODULE, NINE_FUNCTIONS_IN_TEN = 120, 40, 250, 16


def lengths(source: str, kind: type) -> list[tuple[int, str]]:
    """Return (lines, "line NUMBER NAME") of all definitions of the kind in the source, inner ones too."""
    return [
        (node.end_lineno - node.lineno + 1, f"line {node.lineno} {node.name}")
        for node in ast.walk(ast.parse(source))
        if isinstance(node, kind)
    ]


def too_long(found: list[tuple[int, str]], limit: int) -> list[str]:
    """Return those above the limit, longest first, as "NAME: LINES lines"."""
    return [f"{name}: {lines} lines, at most {limit}" for lines, name in sorted(found, reverse=True) if lines > limit]


def all_lengths(kind: type) -> list[tuple[int, str]]:
    return [
        (lines, f"{file.relative_to(ROOT)} {name}") for file in FILES for lines, name in lengths(file.read_text(), kind)
    ]


@pytest.mark.parametrize(("kind", "limit"), [(ast.ClassDef, LONGEST_CLASS), (FUNCTION, LONGEST_FUNCTION)])
def test_no_class_and_no_function_is_too_long(kind, limit):
    assert len(found := all_lengths(kind)) > 200
    assert not too_long(found, limit)


def test_no_module_is_too_long():
    assert len(FILES) > 150
    assert not too_long(
        [(len(file.read_text().splitlines()), str(file.relative_to(ROOT))) for file in FILES], LONGEST_MODULE
    )


def test_nine_functions_in_ten_fit_in_a_glance():
    found = sorted(all_lengths(FUNCTION), reverse=True)
    above = too_long(found, NINE_FUNCTIONS_IN_TEN)
    shortest = [line for line in above if f": {NINE_FUNCTIONS_IN_TEN + 1} lines" in line]
    assert len(above) <= len(found) / 10, f"shorten {len(above) - len(found) // 10} of {len(above)}, as of {shortest}"


def test_lengths_are_counted_from_the_first_line_to_the_last_with_inner_definitions():
    source = "class A:\n    def b(self):\n        def c():\n            return 1\n\n        return c\n"
    assert lengths(source, ast.ClassDef) == [(6, "line 1 A")]
    assert lengths(source, FUNCTION) == [(5, "line 2 b"), (2, "line 3 c")]
    assert too_long(lengths(source, FUNCTION), 2) == ["line 2 b: 5 lines, at most 2"]
