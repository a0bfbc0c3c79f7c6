"""Files of thresholds: what was written is read again, and what is no such file is refused by name."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridiff.schedule.calibration import Calibration, interpolate
from support.calibrations import ENTRY, REUSE_ABOVE

DDIM_20 = replace(ENTRY, scheduler="DDIMScheduler", num_inference_steps=20)
DDIM_50 = replace(ENTRY, scheduler="DDIMScheduler", num_inference_steps=50)
EULER_30 = replace(ENTRY, scheduler="EulerDiscreteScheduler", num_inference_steps=30)


def test_a_file_round_trip(tmp_path: Path) -> None:
    curves = {"discrepancy": [0.5, 0.25], "drift": [0.0, 0.125]}
    measured = [{"tolerance": 0.1, "psnr": 31.5, "label": "a"}]
    whole = Calibration("a model", (replace(DDIM_20, curves=curves, measured=measured), DDIM_50))
    whole.write(tmp_path / "calibration.json")
    assert Calibration.read(tmp_path / "calibration.json") == whole


def test_an_entry_takes_the_place_of_one_for_the_same_scheduler_and_steps() -> None:
    newer = replace(DDIM_20, prompts=99)
    calibration = Calibration("a model", (EULER_30,)).with_entry(DDIM_50).with_entry(DDIM_20).with_entry(newer)
    assert calibration == Calibration("a model", (newer, DDIM_50, EULER_30))


@pytest.mark.parametrize(
    ("scheduler", "steps", "expected"),
    [
        ("DDIMScheduler", 20, DDIM_20),
        ("DDIMScheduler", 34, DDIM_20),
        ("DDIMScheduler", 36, DDIM_50),
        ("DDIMScheduler", 500, DDIM_50),
        ("EulerDiscreteScheduler", 50, EULER_30),  # the same scheduler comes before the same number of steps
        ("UniPCMultistepScheduler", 29, EULER_30),
        ("UniPCMultistepScheduler", 45, DDIM_50),
    ],
)
def test_the_nearest_entry(scheduler: str, steps: int, expected: Any) -> None:
    assert Calibration("a model", (DDIM_20, DDIM_50, EULER_30)).nearest(scheduler, steps) is expected


@pytest.mark.parametrize(
    ("quality", "tolerance"), [(0.0, 0.4), (0.25, 0.4), (0.5, 0.3), (0.625, 0.25), (0.75, 0.2), (0.9, 0.08), (1.0, 0.0)]
)
def test_tolerances_between_those_that_were_measured(quality: float, tolerance: float) -> None:
    assert ENTRY.tolerance(quality) == pytest.approx(tolerance)


def test_the_band_of_a_quality() -> None:
    skipped, entry = ENTRY.bands[0], replace(ENTRY, bands=(*ENTRY.bands, REUSE_ABOVE))
    assert [entry.band(quality) for quality in (0.0, 0.79, 0.8, 1.0)] == [skipped, skipped, REUSE_ABOVE, REUSE_ABOVE]
    assert entry.band(0.9, "skipped") is skipped
    assert entry.band(0.1, "mixed") is skipped, "not there"


@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=6, unique=True).map(sorted),
    st.integers(-10, 60),
    st.data(),
)
def test_straight_lines_stay_between_their_ends(places: list[int], position: int, data: st.DataObject) -> None:
    values = data.draw(st.lists(st.integers(0, 9), min_size=len(places), max_size=len(places)))
    points = [(float(place), float(value)) for place, value in zip(places, values, strict=True)]
    value = interpolate(points, position)
    left = [point for point in points if point[0] <= position][-1:] or points[:1]
    right = [point for point in points if point[0] >= position][:1] or points[-1:]
    ends = sorted((left[0][1], right[0][1]))
    assert ends[0] <= value <= ends[1]
    if position in places:
        assert value == dict(points)[position]


def broken(**changes: Any) -> str:
    """A calibration with something wrong in its entry."""
    entry = {**json.loads(json.dumps(asdict(ENTRY))), **changes}
    return json.dumps({"model": "m", "entries": [{name: value for name, value in entry.items() if value != "gone"}]})


def band(**changes: Any) -> dict[str, Any]:
    """A band with something wrong."""
    return {"least": 0.0, "between": "skipped", "tolerances": [[0.0, 0.1]], **changes}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "Expecting value"),
        ("[1]", "list indices"),
        ("{}", "'entries'"),
        ('{"model": "m", "entries": []}', "it holds no thresholds"),
        ('{"model": "m", "entries": [3]}', "not a mapping|not subscriptable"),
        (broken(bands=[]), "it holds no thresholds"),
        (broken(bands=[band(tolerances=[])]), "it holds no thresholds"),
        (broken(bands=[band(tolerances=[[0.5]])]), "not enough values"),
        (broken(bands=[band(tolerances=[[0.5, "much"]])]), "could not convert"),
        (broken(bands=[{"between": "skipped"}]), "missing 2 required positional arguments: 'least' and 'tolerances'"),
        (broken(bands="gone"), "'bands'"),
        (broken(bands=[band(between="nothing")]), "unknown steps between full ones: nothing"),
        (broken(colour=1), "unexpected keyword argument 'colour'"),
        (broken(catch_up="gone"), "missing 1 required positional argument: 'catch_up'"),
    ],
)
def test_what_is_no_calibration(content: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "thresholds.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=rf"thresholds.json is no calibration \(.*({words}).*\); write one with: hybr"):
        Calibration.read(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot read the calibration .*none.json: No such file or directory"):
        Calibration.read(tmp_path / "none.json")
