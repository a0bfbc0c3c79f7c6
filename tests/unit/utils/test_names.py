from __future__ import annotations

from typing import Any

import pytest

from hybridiff import UsageError
from hybridiff.utils.names import require_known


@pytest.mark.parametrize("choices", [("one", "two"), ["one", "two"], {"one": 1, "two": 2}, iter(["one", "two"])])
def test_a_name_among_the_choices(choices: Any) -> None:
    assert require_known("number", "two", choices) is None


@pytest.mark.parametrize(
    ("name", "words"), [("three", "'three'"), ("", "''"), (None, "None"), (3, "3"), ([1], r"\[1\]")]
)
def test_an_unknown_name(name: object, words: str) -> None:
    with pytest.raises(UsageError, match=f"^unknown number {words}; choose one of one, two$"):
        require_known("number", name, iter(["one", "two"]))
