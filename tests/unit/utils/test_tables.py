from __future__ import annotations

import pytest

from hybridiff.utils.tables import align


def test_words_to_the_left_and_numbers_to_the_right() -> None:
    rows = [["model", "kind", "seconds"], ["tiny-sdxl", "a", "3.25"], ["b", "cached", "12.00"]]
    assert align(rows, words=2).splitlines() == [
        "model      kind    seconds",
        "tiny-sdxl  a          3.25",
        "b          cached    12.00",
    ]


def test_nothing_hangs_over_at_the_end() -> None:
    assert align([["a", "long word"], ["b", ""]], words=2).splitlines() == ["a  long word", "b"]


@pytest.mark.parametrize(("words", "first"), [(0, "  a"), (1, "a")])
def test_how_many_columns_hold_words(words: int, first: str) -> None:
    assert align([["a"], ["abc"]], words).splitlines() == [first, "abc"]


def test_rows_of_unequal_length_are_a_fault() -> None:
    with pytest.raises(ValueError, match="zip"):
        align([["a", "b"], ["c"]])
