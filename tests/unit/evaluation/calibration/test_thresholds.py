"""One small calibration: measured, written, used."""

from __future__ import annotations

from pathlib import Path

import pytest

from hybridiff.config import ParallelConfig
from hybridiff.errors import UsageError
from hybridiff.evaluation.calibration.bands import TARGETS, expectations
from hybridiff.evaluation.calibration.chart import calibration_figure
from hybridiff.evaluation.calibration.thresholds import TOLERANCES, calibrate, check_candidates, format_expectations
from hybridiff.pipeline import parallelize
from hybridiff.schedule.calibration import Calibration
from hybridiff.utils.prompts import Prompt
from support.pipelines import build

CALL = {"num_inference_steps": 6, "guidance_scale": 5.0, "height": 32, "width": 32, "max_sequence_length": 12}
PROMPTS = [Prompt("a ring"), Prompt("a cross")]


def test_a_calibration_is_measured_written_and_used(tmp_path: Path) -> None:
    pipe = build("sd3")
    told: list[tuple[str, int, int]] = []
    entry = calibrate(pipe, PROMPTS, CALL, ["cached"], lambda *progress: told.append(progress))
    images = 2 * (1 + len(TOLERANCES))
    assert told[0] == ("full steps", 1, images)
    assert told[2] == ("cached", 3, images)
    assert told[-1] == ("cached", images, images)
    assert (entry.scheduler, entry.num_inference_steps, entry.prompts) == ("FlowMatchEulerDiscreteScheduler", 6, 2)
    assert [band.step_kind for band in entry.bands] == ["cached"]
    assert [len(entry.curves[name]) for name in ("discrepancy", "discrepancy_deviation", "drift")] == [6, 6, 5]
    assert len(entry.measured) == len(TOLERANCES)
    assert list(expectations(entry)) == sorted(TARGETS)
    assert format_expectations(entry).splitlines()[-1].endswith("identical")
    assert len(calibration_figure("random", entry).axes) == 3
    path = tmp_path / "calibration.json"
    Calibration.open(path, "random").with_entry(entry).write(path)
    assert Calibration.open(path, "random").entries == (entry,)
    assert path.stat().st_size < 4000
    config = ParallelConfig(strategy="hybrid", simulate=True, calibration=str(path), quality=0.0)
    with parallelize(pipe, config) as parallel:
        parallel("a ring", output_type="latent", **CALL)
        assert parallel.report is not None
        assert not parallel.report.notes
    with pytest.raises(UsageError, match="holds the thresholds of random, not of tiny-sd3"):
        Calibration.open(path, "tiny-sd3")


def test_reuse_steps_are_calibrated_by_themselves() -> None:
    entry = calibrate(build("sdxl", "ddim"), PROMPTS[:1], CALL_OF_UNETS, ["reuse"])
    assert {point["step_kind"] for point in entry.measured} == {"reuse"}
    assert entry.measured[-1]["ideal_speedup"] > 2.0, "some steps were reuse steps"


CALL_OF_UNETS = {name: value for name, value in CALL.items() if name != "max_sequence_length"}


def test_what_cannot_be_calibrated_is_refused() -> None:
    with pytest.raises(UsageError, match="HeunDiscreteScheduler is of order 2: thresholds are calibrated for one"):
        calibrate(build("sdxl", "heun"), PROMPTS, CALL_OF_UNETS)
    with pytest.raises(UsageError, match="unknown step kind 'magic'; choose one of cached, reuse"):
        check_candidates(["magic"])
