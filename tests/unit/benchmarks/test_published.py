"""The paper's table of four devices: the page says what was measured, by the arithmetic of ideal times."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.published import METHODS, Row, format_table, main

RESULTS = Path(__file__).parents[3] / "docs" / "results"


def rows_in(folder: Path) -> list[Row]:
    return [Row(**row) for row in json.loads((folder / "published.json").read_text())["rows"]]


def test_the_page_says_what_was_measured() -> None:
    page = (RESULTS / "published.md").read_text().splitlines()
    assert [line for line in page if line.startswith("|")] == format_table(rows_in(RESULTS))


def test_ideal_times_are_those_of_the_arithmetic() -> None:
    steps = json.loads((RESULTS / "published.json").read_text())["steps"]
    for row in rows_in(RESULTS):
        if row.outer is None or row.inner is None:
            assert (row.method, row.ideal_speedup, row.one_device) == ("cfg", 2.0, 1.0)
            continue
        assert row.pipelined == 5, "as in the paper's table"
        group = row.outer + 4 * max(row.outer, row.inner)
        expected = row.images * 2 * steps / (steps - 5 + group)
        assert row.ideal_speedup == pytest.approx(expected, rel=2e-3)
        assert row.one_device == pytest.approx(2 * steps / (2 * steps - 5), abs=1e-3)


def test_one_command_makes_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--limit", "2", "--num-inference-steps", "12", "--output", str(tmp_path)])
    rows = rows_in(tmp_path)
    assert [(row.method, row.devices) for row in rows] == 2 * [(method.name, method.devices) for method in METHODS]
    assert (tmp_path / "published.md").read_text().count("| tiny-sd3 |") == len(METHODS)
    assert capsys.readouterr().out.splitlines() == format_table(rows)


@pytest.mark.parametrize("limit", ["3", "1"])
def test_an_odd_number_of_captions(limit: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--limit", limit])
    assert f"--limit must be even, as two images share a batch on four devices; got {limit}" in capsys.readouterr().err
