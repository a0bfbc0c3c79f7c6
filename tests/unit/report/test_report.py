from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from hybridiff import Phase, RunReport, StepRecord
from hybridiff.schedule.kinds import StepKind


def record(index: int) -> StepRecord:
    return StepRecord(
        index=index,
        phase=Phase.WARM_UP,
        kind=StepKind.FULL,
        discrepancy=0.5 if index else None,
        seconds=0.25,
        bytes_by_purpose={"prediction": 64, "control": 8},
    )


def test_a_report_survives_json_with_the_promised_keys() -> None:
    report = RunReport(strategy="cfg", devices=2, tau1=1, tau2=None, seconds=1.5, steps=[record(0), record(1)])
    report.notes.append("a sentence")
    read = json.loads(report.to_json())
    assert read == report.to_dict()
    assert {"strategy", "tau1", "tau2", "seconds", "steps"} <= read.keys()
    assert (read["strategy"], read["tau1"], read["tau2"], read["seconds"]) == ("cfg", 1, None, 1.5)
    for index, step in enumerate(read["steps"]):
        assert {"index", "phase", "discrepancy", "seconds", "bytes"} <= step.keys()
        assert (step["index"], step["phase"], step["bytes"]) == (index, "warm-up", 72)
    assert [step["discrepancy"] for step in read["steps"]] == [None, 0.5]


def test_bytes_of_a_step_are_those_of_all_purposes() -> None:
    assert record(0).bytes == 72


def test_what_is_no_number_stands_in_json_as_nothing() -> None:
    step = replace(record(0), discrepancy=math.nan, drift=math.inf)
    assert (step.to_dict()["discrepancy"], step.to_dict()["drift"]) == (None, None)
    assert replace(step, drift=0.5).to_dict()["drift"] == 0.5


def test_extra_evaluations_stand_in_json_where_there_were_any() -> None:
    assert "extra_evaluations" not in record(0).to_dict()
    assert replace(record(0), extra_evaluations=1).to_dict()["extra_evaluations"] == 1


@pytest.mark.parametrize("phase", list(Phase))
def test_phases_stand_in_json_by_their_names(phase: Phase) -> None:
    assert json.loads(json.dumps(phase)) == phase.value
