from __future__ import annotations

import json
import math
from dataclasses import replace

from hybridiff import Phase, RunReport, StepKind, StepRecord
from hybridiff.report.report import parts_of_call
from hybridiff.report.speedup import RowPartition
from hybridiff.report.timeline import Span
from support.reports import report


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
    short = RunReport(strategy="cfg", devices=2, tau1=1, tau2=None, seconds=1.5, steps=[record(0), record(1)])
    short.notes.append("a sentence")
    read = json.loads(short.to_json())
    assert read == short.to_dict()
    assert {"strategy", "tau1", "tau2", "seconds", "steps"} <= read.keys()
    assert (read["strategy"], read["tau1"], read["tau2"], read["seconds"]) == ("cfg", 1, None, 1.5)
    for index, step in enumerate(read["steps"]):
        assert {"index", "phase", "discrepancy", "seconds", "bytes"} <= step.keys()
        assert (step["index"], step["phase"], step["bytes"]) == (index, "warm-up", 72)
    assert [step["discrepancy"] for step in read["steps"]] == [None, 0.5]


def test_parts_of_a_call_are_what_lies_between_its_marks() -> None:
    parts = parts_of_call(begin=1.0, first_call=1.5, last_step=4.0, end=4.25)
    assert parts == {"encoding": 0.5, "denoising": 2.5, "decoding": 0.25}
    assert report([0.5], parts=parts).to_dict()["parts"] == parts


def test_shares_of_parts_are_of_all_of_them_with_what_was_added() -> None:
    made = report([0.5], parts={"encoding": 0.5, "denoising": 2.5, "decoding": 0.5})
    made.parts["saving"] = 1.5
    assert made.to_dict()["shares"] == {"encoding": 0.1, "denoising": 0.5, "decoding": 0.1, "saving": 0.3}
    assert report([0.5]).to_dict()["shares"] == {}


def test_bytes_of_a_step_are_those_of_all_purposes() -> None:
    assert record(0).bytes == 72


def test_what_is_no_number_stands_in_json_as_nothing() -> None:
    step = replace(record(0), discrepancy=math.nan, drift=math.inf)
    assert (step.to_dict()["discrepancy"], step.to_dict()["drift"]) == (None, None)
    assert replace(step, drift=0.5).to_dict()["drift"] == 0.5


def test_extra_evaluations_stand_in_json_where_there_were_any() -> None:
    assert "extra_evaluations" not in record(0).to_dict()
    assert replace(record(0), extra_evaluations=1).to_dict()["extra_evaluations"] == 1


def test_an_estimate_stands_in_json_where_there_is_one() -> None:
    assert "estimated" not in record(0).to_dict()
    assert replace(record(0), estimated=47.5).to_dict()["estimated"] == 47.5


def test_what_steps_were_of_is_counted_by_name() -> None:
    kinds = [StepKind.FULL, StepKind.FULL, StepKind.CACHED, StepKind.REUSE, StepKind.CACHED, StepKind.FULL]
    phases = [Phase.WARM_UP] * 2 + [Phase.PARALLEL] * 4
    counted = report([0.5] * 6, phases, kinds)
    assert counted.phases == {"warm-up": 2, "parallel": 4, "connect": 0}
    assert counted.kinds == {"full": 3, "reuse": 1, "cached": 2}, "kinds that did not occur are not named"
    assert counted.bytes_by_purpose == {"prediction": 6 * 40}
    assert {name: counted.to_dict()[name] for name in ("phases", "kinds", "bytes_by_purpose")} == {
        "phases": counted.phases,
        "kinds": counted.kinds,
        "bytes_by_purpose": counted.bytes_by_purpose,
    }


def test_the_partition_stands_in_json() -> None:
    assert report([0.5]).to_dict()["partition"] is None
    shared = report([0.5], partition=RowPartition(rows=4, largest=2))
    assert json.loads(shared.to_json())["partition"] == {
        "rows": 4,
        "largest": 2,
        "largest_extra": None,
        "branches": 2,
        "shards": 1,
    }


def test_a_promise_stands_in_json() -> None:
    assert report([0.5]).to_dict()["fidelity"] == {}
    promised = {"promised": 50, "estimated": 51.25}
    assert json.loads(report([0.5], fidelity=promised).to_json())["fidelity"] == promised


def test_spans_are_no_part_of_the_json() -> None:
    traced = report([0.5], spans=[Span(0, "work", "stage", 0.0, 1.0)])
    assert "spans" not in traced.to_dict()
    assert "Span" not in repr(traced)
