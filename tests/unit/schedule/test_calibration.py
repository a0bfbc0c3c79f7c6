"""Files of thresholds: what was written is read again, and what is no such file is refused by name."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from hybridiff import UsageError
from hybridiff.schedule.calibration import Calibration
from support.calibrations import ENTRY, REUSE_ABOVE

DDIM_20 = replace(ENTRY, scheduler="DDIMScheduler", num_inference_steps=20)
DDIM_50 = replace(ENTRY, scheduler="DDIMScheduler", num_inference_steps=50)
SDE_50 = replace(ENTRY, scheduler="DDIMScheduler (eta=1.0)", num_inference_steps=50)
EULER_30 = replace(ENTRY, scheduler="EulerDiscreteScheduler", num_inference_steps=30)


def test_a_file_round_trip(tmp_path: Path) -> None:
    curves = {"discrepancy": [0.5, 0.25], "drift": [0.0, 0.125]}
    measured = [{"tolerance": 0.1, "psnr": 31.5, "label": "a"}]
    entries = (replace(DDIM_20, curves=curves, measured=measured), DDIM_50)
    whole = Calibration("a model", entries, {"reuse": 8, "pipelined": 29})
    whole.write(tmp_path / "calibration.json")
    assert Calibration.read(tmp_path / "calibration.json") == whole


def test_a_file_of_an_earlier_version(tmp_path: Path) -> None:
    """Its entries and what was measured of each tolerance say how much was corrected: all of it."""
    entry = replace(DDIM_20, measured=[{"tolerance": 0.1, "psnr": 31.5}])
    older = asdict(entry) | {"correction": 1.0, "measured": [{"correction": 1.0, "tolerance": 0.1, "psnr": 31.5}]}
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps({"model": "a model", "entries": [older]}))
    assert Calibration.read(path) == Calibration("a model", (entry,))


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


def test_the_same_class_with_other_settings_comes_before_another_class() -> None:
    calibration = Calibration("a model", (SDE_50, EULER_30))
    assert calibration.nearest("DDIMScheduler", 30) is SDE_50
    both = calibration.with_entry(DDIM_50)
    assert (both.nearest("DDIMScheduler", 30), both.nearest(SDE_50.scheduler, 30)) == (DDIM_50, SDE_50)


@pytest.mark.parametrize(
    ("quality", "tolerance"), [(0.0, 0.4), (0.25, 0.4), (0.5, 0.3), (0.625, 0.25), (0.75, 0.2), (0.9, 0.08), (1.0, 0.0)]
)
def test_tolerances_between_those_that_were_measured(quality: float, tolerance: float) -> None:
    assert ENTRY.tolerance(quality) == pytest.approx(tolerance)


def test_the_band_of_a_quality() -> None:
    cached, entry = ENTRY.bands[0], replace(ENTRY, bands=(*ENTRY.bands, REUSE_ABOVE))
    assert [entry.band(quality) for quality in (0.0, 0.79, 0.8, 1.0)] == [cached, cached, REUSE_ABOVE, REUSE_ABOVE]
    assert entry.band(0.9, "cached") is cached
    assert entry.band(0.1, "reuse") is REUSE_ABOVE
    assert ENTRY.band(0.9, "reuse") is cached, "not there"
    late = replace(ENTRY, bands=(REUSE_ABOVE,))
    assert late.band(0.1) is REUSE_ABOVE, "the first one holds below it too"


def test_the_tolerances_of_another_kind() -> None:
    entry = replace(ENTRY, bands=(*ENTRY.bands, REUSE_ABOVE))
    assert entry.tolerance(0.875) == entry.tolerance(0.875, "reuse") == pytest.approx(0.15)
    assert entry.tolerance(0.875, "cached") == pytest.approx(0.1)
    assert entry.tolerance(0.5, "reuse") == pytest.approx(0.45)


def broken(**changes: Any) -> str:
    """A calibration with something wrong in its entry."""
    entry = {**json.loads(json.dumps(asdict(ENTRY))), **changes}
    return json.dumps({"model": "m", "entries": [{name: value for name, value in entry.items() if value != "gone"}]})


def band(**changes: Any) -> dict[str, Any]:
    """A band with something wrong."""
    return {"least": 0.0, "step_kind": "cached", "tolerances": [[0.0, 0.1]], **changes}


def whole(**changes: Any) -> str:
    """A calibration with something wrong beside its entry."""
    return json.dumps({**json.loads(broken()), **changes})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "Expecting value"),
        ("[1]", "list indices"),
        ("{}", "'entries'"),
        ('{"model": "m", "entries": []}', "it holds no thresholds"),
        ('{"model": "m", "entries": [3]}', "not subscriptable"),
        ('{"model": "m", "entries": [3', "Expecting"),
        (broken(bands=[]), "an entry needs a band"),
        (broken(bands=[band(tolerances=[])]), "a band needs tolerances and a step_kind of cached, reuse"),
        (broken(bands=[band(tolerances=[[0.5]])]), "not enough values"),
        (broken(bands=[band(tolerances=[[0.5, "much"]])]), "could not convert"),
        (broken(bands=[{"step_kind": "cached", "tolerances": [[0.0, 0.1]]}]), "'least'"),
        (broken(bands=[{"step_kind": "cached", "least": 0.0}]), "'tolerances'"),
        (broken(bands="gone"), "'bands'"),
        (broken(bands=[band(step_kind="nothing")]), "a band needs tolerances and a step_kind of cached, reuse"),
        (broken(bands=[band(step_kind="pipelined")]), "a band needs tolerances and a step_kind of cached, reuse"),
        (broken(published={"slope_window": 0}), "slope_window must be at least 1, got 0"),
        (broken(published={"colour": 1}), "unexpected keyword argument 'colour'"),
        (broken(published="gone"), "'published'"),
        (broken(colour=1), "unexpected keyword argument 'colour'"),
        (broken(published={"slope_window": 4}), "an entry needs all settings of the published rule"),
        (broken(correction=0.75), r"it was measured with a correction of 0\.75, which is always 1 now"),
        (broken(measured=[{"correction": 0.75}]), r"it was measured with a correction of 0\.75"),
        (broken(correction="much"), "it was measured with a correction of much"),
        (broken(num_inference_steps=0), "num_inference_steps must be at least 1, got 0"),
        (broken(num_inference_steps="20"), "must be real number, not str"),
        (broken(bands=[band(tolerances=[[0.5, math.nan]])]), "tolerance must be a finite number, got nan"),
        (broken(bands=[band(tolerances=[[0.5, -1.0]])]), "tolerance must be at least 0, got -1"),
        (whole(split_points={"cached": 3}), "split_points are indices for pipelined or reuse steps, not cached: 3"),
        (whole(split_points={"reuse": -1}), "split_points are indices for pipelined or reuse steps, not reuse: -1"),
        (whole(split_points={"reuse": 1.5}), r"split_points are indices .*, not reuse: 1\.5"),
        (whole(split_points={"reuse": True}), "split_points are indices .*, not reuse: True"),
        (whole(split_points=[1, 2]), "no attribute 'items'"),
    ],
)
def test_what_is_no_calibration(content: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "thresholds.json"
    path.write_text(content)
    with pytest.raises(UsageError, match=rf"thresholds.json is no calibration \(.*({words}).*\); write one with: hybr"):
        Calibration.read(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read the calibration .*none.json: No such file or directory"):
        Calibration.read(tmp_path / "none.json")


def test_opening_a_file_to_add_to_it(tmp_path: Path) -> None:
    path = tmp_path / "thresholds.json"
    assert Calibration.open(path, "a model") == Calibration("a model", ())
    Calibration("a model", (DDIM_20,)).write(path)
    assert Calibration.open(path, "a model").with_entry(EULER_30).entries == (DDIM_20, EULER_30)
    with pytest.raises(UsageError, match="holds the thresholds of a model, not of another; give another --output"):
        Calibration.open(path, "another")


def test_what_ranks_compare() -> None:
    """All that decides images, and nothing else."""
    calibration = Calibration("a model", (DDIM_20,), {"reuse": 3})
    curves = replace(DDIM_20, curves={"drift": [1.0]}, measured=[{"psnr": 30.0}])
    assert Calibration("another name", (curves,), {"reuse": 3}).describe() == calibration.describe()
    others = [
        Calibration("a model", (replace(DDIM_20, guidance_scale=0.5),), {"reuse": 3}),
        Calibration("a model", (DDIM_20,), {"reuse": 4}),
        Calibration("a model", (DDIM_20, DDIM_50), {"reuse": 3}),
    ]
    assert len({other.describe() for other in [calibration, *others]}) == 4
    assert str(calibration) == "calibration of a model"
