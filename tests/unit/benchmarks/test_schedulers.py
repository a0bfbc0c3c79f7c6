"""Every scheduler of diffusers: cached steps keep a promise, or the report says why not; and the page says the same."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from benchmarks.schedulers import CASES, NOT_TRIED, PROMISE, Case, format_page, measure, scheduler_names
from hybridiff.evaluation.workload import seeded, take_prompts
from hybridiff.numerics.estimate import OSCILLATES

RESULTS = Path(__file__).parents[3] / "docs" / "results"
STUDY = json.loads((RESULTS / "schedulers.json").read_text(encoding="utf-8"))
ROWS: dict[str, dict[str, Any]] = {row["name"]: row for row in STUDY["rows"]}

SHORT = 4.0
"""Decibels that the mean of a row may fall short of the promise."""

SHORTER = {"UniPCMultistep, tiny-sd3": 6.0, "DEISMultistep, tiny-sd3": 6.0}
"""Likewise: barely stable there; of UniPC one image of eight does not oscillate, and all of DEIS amplify errors."""

BROKEN = 10.0
"""Decibels that an image may fall short of it whose report does not say that the solver is unstable, or adds noise."""

MORE_BROKEN = {"DEISMultistep, tiny-sd3": 18.0}
"""Likewise: where images bifurcate whose predictions do not quite go to and fro."""

TRUSTED = 55.0
"""Above that rounding and chance decide how near an image is."""


def says_why(row: dict[str, Any]) -> bool:
    """Whether the report names the scheduler and what is special about it."""
    name = f"{row['name'].split(',')[0]}Scheduler "
    return any(note.startswith(name) for image in row["images"] for note in image["notes"])


def test_every_scheduler_is_known() -> None:
    """A new diffusers may bring more: enter them in `CASES`, or in `NOT_TRIED` with a reason."""
    tried = {case.scheduler for case in CASES}
    assert tried | NOT_TRIED.keys() == scheduler_names()
    assert list(ROWS) == [case.name for case in CASES]
    assert not tried & NOT_TRIED.keys()


def test_the_page_shows_the_rows() -> None:
    page = (RESULTS / "schedulers.md").read_text(encoding="utf-8")
    assert page == format_page(STUDY["rows"], STUDY["made_with"]["command"])


@pytest.mark.parametrize("row", STUDY["rows"], ids=lambda row: row["name"])
def test_cached_steps_keep_the_promise_or_the_report_says_why_not(row: dict[str, Any]) -> None:
    has_cached = any("c" in image["schedule"] for image in row["images"])
    assert has_cached or says_why(row)
    assert row["adds_noise"] <= says_why(row)
    stable = [image["true"] for image in row["images"] if OSCILLATES not in image["notes"]]
    assert mean(stable) >= PROMISE - SHORTER.get(row["name"], SHORT)
    assert row["adds_noise"] or min(stable) >= PROMISE - MORE_BROKEN.get(row["name"], BROKEN)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_run_gives_what_the_page_says(case: Case) -> None:
    """One image of it; other processors round otherwise, and may choose another full step here and there."""
    if case.needs:
        pytest.importorskip(case.needs)
    known = ROWS[case.name]
    row = measure(case, seeded(take_prompts(case.model, None, "evaluation", (1,))))
    assert {name: row[name] for name in _SAME} == {name: known[name] for name in _SAME}
    (image,), expected = row["images"], known["images"][0]
    assert image["notes"] == expected["notes"]
    if OSCILLATES in image["notes"]:
        return  # chance decides
    assert min(TRUSTED, image["true"]) == pytest.approx(min(TRUSTED, expected["true"]), abs=6.0)
    assert image["ideal_speedup"] == pytest.approx(expected["ideal_speedup"], rel=0.2)


_SAME = ("evaluations", "order", "adds_noise")
