"""Ideal times and speed-ups, against the formulas of the method ("The arithmetic")."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridiff.report.report import RunReport, StepRecord
from hybridiff.report.speedup import (
    RowPartition,
    StageCosts,
    critical_path,
    evaluated_steps,
    ideal_speedup,
    mean_speedup,
)
from hybridiff.schedule.kinds import Phase, StepKind

FULL, PIPELINED = StepKind.FULL, StepKind.PIPELINED
HALVES = StageCosts(0.5, 0.5)
ONE_DEVICE = RowPartition(rows=2, largest=2)


def schedule(steps: int, *groups: tuple[int, int]) -> list[StepKind]:
    """Full steps, with groups of pipelined ones given by their first step and their length."""
    kinds = [FULL] * steps
    for first, length in groups:
        kinds[first : first + length] = [PIPELINED] * length
    return kinds


def test_partitioning_alone_halves_the_time() -> None:
    assert critical_path([FULL] * 50, HALVES) == 50.0
    assert ideal_speedup([FULL] * 50, HALVES) == 2.0


@pytest.mark.parametrize(("pipelined", "quoted"), [(0, "2.00"), (5, "2.11"), (20, "2.50"), (30, "2.86")])
def test_the_limits_quoted_for_halves(pipelined: int, quoted: str) -> None:
    speedup = ideal_speedup(schedule(50, (15, pipelined)), HALVES)
    assert speedup == pytest.approx(2 * 50 / (50 - pipelined / 2))
    assert f"{speedup:.2f}" == quoted


outer_shares = st.floats(0.05, 0.95)


@given(outer_shares, st.floats(0.0, 0.1), st.integers(1, 30))
def test_one_group(outer: float, around: float, length: int) -> None:
    costs = StageCosts(outer, 1 - outer + around)
    expected = 20 + outer + (length - 1) * max(costs.outer, costs.inner)
    assert critical_path(schedule(20 + length, (5, length)), costs) == pytest.approx(expected)


@given(outer_shares, st.lists(st.tuples(st.integers(1, 4), st.integers(1, 6)), min_size=1, max_size=6))
def test_several_groups(outer: float, groups: list[tuple[int, int]]) -> None:
    costs = StageCosts(outer, 1 - outer)
    kinds: list[StepKind] = []
    for full, length in groups:
        kinds += [FULL] * full + [PIPELINED] * length
    in_full = sum(full for full, _ in groups)
    in_groups = sum(outer + (length - 1) * max(outer, 1 - outer) for _, length in groups)
    assert critical_path(kinds, costs) == pytest.approx(in_full + in_groups)


def test_a_long_group_of_unbalanced_stages_goes_at_the_pace_of_the_slower() -> None:
    slow = ideal_speedup(schedule(1000, (10, 900)), StageCosts(0.3, 0.7))
    assert slow == pytest.approx(2000 / (100 + 0.3 + 899 * 0.7))
    assert slow == pytest.approx(2000 / (100 + 900 * 0.7), rel=1e-3)


def test_a_first_step_gains_already() -> None:
    """The inner result that the full step before left behind is there: only the outer stage is waited for."""
    assert critical_path(schedule(3, (1, 1)), StageCosts(0.3, 0.7)) == pytest.approx(2.3)
    assert critical_path(schedule(4, (1, 2)), StageCosts(0.3, 0.7)) == pytest.approx(3.0)


def test_the_cost_of_a_serial_step() -> None:
    """rho: a batch of two may cost less than two evaluations."""
    assert ideal_speedup([FULL] * 10, HALVES, serial_step=1.7) == pytest.approx(1.7)
    assert ideal_speedup([FULL] * 10, HALVES, ONE_DEVICE, serial_step=1.7) == 1.0


@pytest.mark.parametrize(
    ("rows", "largest", "speedup"), [(2, 2, 1.0), (6, 6, 1.0), (4, 2, 2.0), (4, 1, 4.0), (2, 1, 2.0), (6, 2, 3.0)]
)
def test_a_full_step_takes_as_long_as_the_device_with_most_rows(rows: int, largest: int, speedup: float) -> None:
    partition = RowPartition(rows, largest)
    assert ideal_speedup([FULL] * 10, partition=partition) == pytest.approx(speedup)
    assert ideal_speedup([FULL, StepKind.CACHED] * 5, partition=partition) == pytest.approx(2 * speedup)


def test_a_reuse_step_costs_the_outer_stage() -> None:
    costs = StageCosts(0.3, 0.7)
    assert critical_path([FULL, StepKind.REUSE, FULL, StepKind.REUSE, StepKind.REUSE], costs) == pytest.approx(2.9)


def test_a_cached_step_costs_nothing() -> None:
    kinds = [FULL, StepKind.CACHED, StepKind.CACHED, FULL, StepKind.CACHED]
    assert critical_path(kinds) == 2.0
    assert ideal_speedup(kinds) == 5.0
    assert ideal_speedup(kinds, partition=ONE_DEVICE) == 2.5


def test_extra_evaluations_cost_a_branch_on_both_sides() -> None:
    kinds = [FULL, StepKind.CACHED, FULL, StepKind.CACHED]
    assert ideal_speedup(kinds, extra=3) == pytest.approx((8 + 3) / (2 + 3))
    assert ideal_speedup(kinds, partition=ONE_DEVICE, extra=3) == pytest.approx((8 + 3) / (4 + 3))
    assert ideal_speedup([FULL] * 4, partition=RowPartition(4, 2, largest_extra=1), extra=4) == 2.0
    assert ideal_speedup([FULL] * 4, partition=RowPartition(4, 4, largest_extra=2), extra=4) == 1.0


def report(strategy: str, kinds: list[StepKind], discrepancies: list[float | None], **stages: float) -> RunReport:
    steps = [
        StepRecord(
            i, Phase.WARM_UP, kind, discrepancy, 1.0, {}, branches=1 if (kind, discrepancy) == (FULL, None) else 2
        )
        for i, (kind, discrepancy) in enumerate(zip(kinds, discrepancies, strict=True))
    ]
    return RunReport(strategy, 2, steps=steps, stages=dict(stages))


def test_a_report_takes_its_own_costs() -> None:
    kinds = schedule(10, (4, 3))
    discrepancies = [0.1 if kind is FULL else None for kind in kinds]
    hybrid = report("hybrid", kinds, discrepancies, outer=0.4, inner=0.62)
    assert hybrid.ideal_speedup == pytest.approx(20 / (7 + 0.4 + 2 * 0.62))
    assert hybrid.to_dict()["ideal_speedup"] == hybrid.ideal_speedup
    assert report("cfg", [FULL] * 10, [0.1] * 10).ideal_speedup == 2.0
    untold = replace(report("cached_cfg", [FULL] * 10, [0.1] * 10), ideal_is_known=False)
    assert untold.to_dict()["ideal_speedup"] is None


def test_a_report_that_does_not_know_its_partition_is_of_one_image() -> None:
    of_old = report("hybrid", [FULL, StepKind.CACHED], [0.1, None])
    assert of_old.to_dict()["partition"] is None
    assert of_old.ideal_speedup == 4.0
    of_old.devices = 1
    assert of_old.ideal_speedup == 2.0


def test_a_report_without_a_speedup() -> None:
    assert report("serial", [FULL] * 10, [0.1] * 10).ideal_speedup is None
    assert report("cfg", [FULL] * 10, [None] * 10).ideal_speedup is None
    assert report("hybrid", [], []).ideal_speedup is None


def test_steps_without_guidance_gain_nothing() -> None:
    """Guidance that ends early leaves one branch: one evaluation, on however many devices."""
    cut_off = report("cfg", [FULL] * 10, [0.1] * 4 + [None] * 6)
    assert cut_off.ideal_speedup == pytest.approx((2 * 4 + 6) / 10)


def test_guidance_that_begins_late() -> None:
    """Of the steps before it a cached one costs nothing, and would have cost one evaluation on one device."""
    late = report("hybrid", [FULL, StepKind.CACHED, FULL, FULL, StepKind.CACHED], [None, None, None, 0.1, None])
    late.steps[1] = replace(late.steps[1], branches=1)
    assert late.ideal_speedup == pytest.approx((3 + 2 * 2) / (2 + 1))


def test_what_shared_images_cost_is_counted_where_it_was_measured() -> None:
    partition = RowPartition(rows=2, largest=1, shards=2)
    assert ideal_speedup([FULL] * 10, partition=partition) == 4.0
    assert ideal_speedup([FULL] * 10, partition=partition, share=0.625) == pytest.approx(3.2)


def test_of_reuse_steps_the_outer_stage_of_a_part_counts_where_it_was_measured() -> None:
    stages, partition = {"outer": 0.3, "inner": 0.7}, RowPartition(rows=2, largest=1, shards=2)
    kinds = [FULL, StepKind.REUSE, StepKind.REUSE]
    assert StageCosts.of(stages, {"share": 0.6}) == StageCosts(0.3, 0.7)
    costs = StageCosts.of(stages, {"share": 0.6, "outer": {"share": 0.24}})
    assert ideal_speedup(kinds, costs, partition, share=0.6) == pytest.approx(6 / (0.6 + 2 * 0.24))


def test_several_generations_have_the_speedup_of_all_their_time() -> None:
    assert mean_speedup([2.0, 4.0]) == pytest.approx((1 + 1) / (1 / 2 + 1 / 4)), "4.0 does not make up for 2.0"
    assert mean_speedup([None, 4.0]) == pytest.approx(2 / (1 + 1 / 4)), "one is serial"


def test_steps_ahead_are_evaluated_as_full_ones_are() -> None:
    assert evaluated_steps("ffaaaccfprf") == 7
