"""The embedded models generate what they did before the house was rearranged: the same bits, the same schedules."""

from __future__ import annotations

import json

import pytest

from support.fingerprints import FILE, Case, cases, machine

RECORDED = json.loads(FILE.read_text())
SAME_MACHINE = RECORDED["machine"] == machine()


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_images_are_what_they_were(case: Case) -> None:
    expected, generated = RECORDED["cases"][case.name], case.generate()
    assert generated["schedule"] == expected["schedule"]
    if SAME_MACHINE:
        assert generated["sha256"] == expected["sha256"]
    else:  # another processor rounds differently
        assert generated["coarse"] == pytest.approx(expected["coarse"], abs=0.02)


def test_every_recorded_case_is_generated() -> None:
    assert {case.name for case in cases()} == set(RECORDED["cases"])
