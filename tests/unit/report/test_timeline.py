"""What ranks did when: one lane per rank, stages and waits by name, and both stages of a pipelined step at once."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from typing import Any

import pytest

from hybridiff import ParallelConfig, UsageError, parallelize
from hybridiff.report.timeline import Span, Timeline, write_chrome_trace
from support.pipelines import build, generate
from support.ranks import run_ranks
from support.schedules import capped

INNER, OUTER = "inner stage, unconditional", "outer stage, conditional"
WHOLE = "whole network, own branch"
WAITS = {"wait: gather the predictions", "wait: swap the stages' boundaries", "wait: receive the prediction"}
PAUSE = 0.2  # in each stage of a pipelined step: it overlaps with the other's however busy the machine is
PARALLEL_STEPS = 3


def test_a_timeline_that_is_off_keeps_nothing() -> None:
    timeline = Timeline(synchronize=lambda: pytest.fail("waited for the device"))
    with timeline.span(0, "work", "stage"):
        pass
    assert timeline.spans == []


def test_a_span_ends_when_the_device_has_done_its_work() -> None:
    happened: list[str] = []
    timeline = Timeline(enabled=True, synchronize=lambda: happened.append("waited"))
    with timeline.span(1, "work", "stage"):
        happened.append("worked")
    (span,) = timeline.spans
    assert happened == ["worked", "waited"]
    assert (span.rank, span.name, span.category) == (1, "work", "stage")
    assert span.seconds >= 0


def test_work_that_fails_is_recorded_too() -> None:
    timeline = Timeline(enabled=True)
    with pytest.raises(KeyError), timeline.span(0, "work", "stage"):
        raise KeyError
    assert [span.name for span in timeline.spans] == ["work"]


def test_spans_become_events(tmp_path: Path) -> None:
    spans = [Span(1, "late", "message", 12.5, 0.25), Span(0, "early", "stage", 12.0, 1.0)]
    path = tmp_path / "trace.json"
    write_chrome_trace(spans, path)
    lanes, events = split(json.loads(path.read_text()))
    assert lanes == {0: "rank 0", 1: "rank 1"}
    assert [(e["name"], e["cat"], e["tid"]) for e in events] == [("late", "message", 1), ("early", "stage", 0)]
    assert [(e["ts"], e["dur"]) for e in events] == [(0.5e6, 0.25e6), (0.0, 1e6)]  # in microseconds
    assert {e["ph"] for e in events} == {"X"}


def test_a_run_without_a_trace(tmp_path: Path) -> None:
    with parallelize(build("sd3"), ParallelConfig(simulate=True, **capped(4, 1, 1, split_point=1))) as parallel:
        generate(parallel, "sd3")
    assert parallel.report is not None
    assert parallel.report.spans == []
    with pytest.raises(UsageError, match=r"recorded no trace; run it with ParallelConfig\(trace=True\)"):
        write_chrome_trace(parallel.report.spans, tmp_path / "trace.json")
    assert not (tmp_path / "trace.json").exists()


def test_a_simulated_run_has_a_lane_for_each_rank_that_is_played(tmp_path: Path) -> None:
    config = ParallelConfig(simulate=True, trace=True, **capped(6, 1, PARALLEL_STEPS, split_point=1))
    with parallelize(build("sd3"), config) as parallel:
        generate(parallel, "sd3", num_inference_steps=6)
    assert parallel.report is not None
    write_chrome_trace(parallel.report.spans, tmp_path / "trace.json")
    lanes, events = split(json.loads((tmp_path / "trace.json").read_text()))
    assert lanes == {0: "rank 0", 1: "rank 1"}
    assert named(events, INNER, 0) == named(events, OUTER, 1) == PARALLEL_STEPS
    assert named(events, WHOLE, 0) == named(events, WHOLE, 1) == 3
    assert named(events, INNER, 1) == named(events, OUTER, 0) == 0


@pytest.mark.distributed
def test_both_stages_of_a_pipelined_step_run_at_once(tmp_path: Path) -> None:
    texts = run_ranks(traced, 2, str(tmp_path))
    assert json.loads(texts[0]) == json.loads(texts[1])  # every rank has the spans of all
    lanes, events = split(json.loads(texts[0]))
    assert lanes == {0: "rank 0", 1: "rank 1"}
    assert all(event["dur"] >= 0 and event["ts"] >= 0 for event in events)
    assert min(event["ts"] for event in events) == 0

    inner, outer = spans_of(events, INNER, 0), spans_of(events, OUTER, 1)
    assert len(inner) == len(outer) == PARALLEL_STEPS
    for mine, theirs in zip(inner, outer, strict=True):
        assert overlap(mine, theirs)
    # A step ends before the next one begins, on either rank.
    for (_, end), (start, _) in [*zip(inner, outer[1:], strict=False), *zip(outer, inner[1:], strict=False)]:
        assert end <= start

    for rank in (0, 1):
        stages = sorted(span for name in (INNER, OUTER, WHOLE) for span in spans_of(events, name, rank))
        waits = {event["name"] for event in events if event["tid"] == rank and event["cat"] == "message"}
        assert waits == WAITS
        assert named(events, WHOLE, rank) == 3
        assert named(events, "wait: swap the stages' boundaries", rank) == PARALLEL_STEPS
        assert named(events, "wait: receive the prediction", rank) == PARALLEL_STEPS
        assert not any(overlap(one, other) for one, other in itertools.pairwise(stages))


def traced(folder: str) -> str:
    """The trace as a rank writes it; the inner rank pauses in its stage, the outer one in its own."""
    from torch import distributed

    pipe = build("sd3")
    rank = distributed.get_rank()
    part = pipe.transformer.transformer_blocks[1].attn if rank == 0 else pipe.transformer.proj_out
    part.register_forward_pre_hook(lambda *_: time.sleep(PAUSE))
    config = ParallelConfig(outputs="all", trace=True, **capped(6, 1, PARALLEL_STEPS, split_point=1))
    with parallelize(pipe, config) as parallel:
        generate(parallel, "sd3", num_inference_steps=6)
    assert parallel.report is not None
    path = Path(folder) / f"{rank}.json"
    write_chrome_trace(parallel.report.spans, path)
    return path.read_text()


def split(trace: dict[str, Any]) -> tuple[dict[int, str], list[dict[str, Any]]]:
    """The lanes by number, and the events in them."""
    entries = trace["traceEvents"]
    lanes = {e["tid"]: e["args"]["name"] for e in entries if (e["ph"], e["name"]) == ("M", "thread_name")}
    return lanes, [e for e in entries if e["ph"] != "M"]


def spans_of(events: list[dict[str, Any]], name: str, rank: int) -> list[tuple[float, float]]:
    """Start and end of the events of that name, in order."""
    return sorted((e["ts"], e["ts"] + e["dur"]) for e in events if (e["name"], e["tid"]) == (name, rank))


def named(events: list[dict[str, Any]], name: str, rank: int) -> int:
    return len(spans_of(events, name, rank))


def overlap(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one[0] < other[1] and other[0] < one[1]
