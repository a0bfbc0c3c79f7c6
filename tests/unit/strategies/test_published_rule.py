"""The published switching rule, against a statement of it of our own."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hybridiff import PublishedSettings, UsageError
from hybridiff.schedule.kinds import Phase, StepKind
from hybridiff.strategies.published.rule import PublishedPolicy


def settings(window: int = 3, threshold: float = 0.01, steps: int = 2, cap: int = 8) -> PublishedSettings:
    return PublishedSettings(slope_window=window, slope_threshold=threshold, parallel_steps=steps, tau_cap=cap)


def run(curve: list[float], chosen: PublishedSettings) -> PublishedPolicy:
    """A generation: full steps are observed, pipelined ones have no discrepancy."""
    policy = PublishedPolicy(chosen, len(curve))
    for step, value in enumerate(curve):
        if policy.kind(step) is StepKind.FULL:
            policy.observe(step, value, math.nan)
    return policy


def published_taus(curve: list[float], chosen: PublishedSettings) -> tuple[int, int]:
    """(tau1, tau2) of a whole curve at once: the earliest flat window before the cap decides, else the cap.

    The window of step i reaches back to i-L+1 and is looked at from step L on; its slope divides by L. The cap speaks
    after step tau_cap-1 at the earliest, and only where that step is not flat itself.
    """
    length, threshold, parallel_steps, cap = chosen.values
    flat = [
        end
        for end in range(length, len(curve))
        for slope in [(curve[end - length + 1] - curve[end]) / length]
        if not slope < 0 and slope < threshold
    ]
    tau1 = min([end for end in flat if end <= max(cap - 1, 0)], default=cap)
    return tau1, tau1 + parallel_steps


values = st.floats(0.0, 1.0, allow_nan=False, width=32)
coarse = st.integers(0, 8).map(lambda eighth: eighth / 8)  # so that equal values, and slopes of exactly 0, are common


@st.composite
def generations(draw: st.DrawFn) -> tuple[list[float], PublishedSettings]:
    curve = draw(st.lists(st.one_of(values, coarse), min_size=3, max_size=40))
    shape = draw(st.sampled_from(["as it is", "falling", "rising", "U-shaped"]))
    if shape != "as it is":
        ordered = sorted(curve, reverse=shape == "falling")
        curve = [*ordered[::-2], *ordered[::2]] if shape == "U-shaped" else ordered
        curve = sorted(curve[: len(curve) // 2], reverse=True) + curve[len(curve) // 2 :] if shape[0] == "U" else curve
    parallel_steps = draw(st.integers(1, len(curve) - 2))
    return curve, PublishedSettings(
        slope_window=draw(st.integers(1, len(curve) + 5)),
        slope_threshold=draw(st.sampled_from([1e-6, 1e-3, 0.02, 0.1, 2.0])),
        parallel_steps=parallel_steps,
        tau_cap=draw(st.integers(1, len(curve) - 1 - parallel_steps)),
    )


@given(generations())
@example(([0.5] * 11, settings()))
@example(([1 - i / 11 for i in range(11)], settings(window=12)))
@example(([0.1 * i for i in range(11)], settings(cap=1)))
def test_the_rule(generation: tuple[list[float], PublishedSettings]) -> None:
    curve, chosen = generation
    policy = run(curve, chosen)
    assert (policy.tau1, policy.tau2) == published_taus(curve, chosen)
    assert policy.tau2 is not None
    assert policy.tau2 < len(curve)


@given(generations())
def test_phases_and_kinds_follow_from_the_taus(generation: tuple[list[float], PublishedSettings]) -> None:
    curve, chosen = generation
    tau1, tau2 = published_taus(curve, chosen)
    policy = run(curve, chosen)
    phases = [policy.phase(step) for step in range(len(curve))]
    assert phases[: tau1 + 1] == [Phase.WARM_UP] * (tau1 + 1)
    assert phases[tau1 + 1 : tau2 + 1] == [Phase.PARALLEL] * chosen.values[2]
    assert phases[tau2 + 1 :] == [Phase.CONNECT] * (len(curve) - 1 - tau2)
    assert [policy.kind(step) for step in range(len(curve))] == [
        StepKind.PIPELINED if phase is Phase.PARALLEL else StepKind.FULL for phase in phases
    ]


@given(generations())
def test_a_phase_is_final_once_the_steps_before_it_were_seen(generation: tuple[list[float], PublishedSettings]) -> None:
    curve, chosen = generation
    policy = PublishedPolicy(chosen, len(curve))
    told = []
    for step, value in enumerate(curve):
        told.append(policy.phase(step))
        if policy.kind(step) is StepKind.FULL:
            policy.observe(step, value, math.nan)
    assert told == [policy.phase(step) for step in range(len(curve))]


@pytest.mark.parametrize(
    ("curve", "chosen", "tau1"),
    [
        pytest.param([0.5] * 12, settings(), 3, id="flat from the start: at step L, not before"),
        pytest.param([1.0 - i / 15 for i in range(12)], settings(), 8, id="never flat"),
        pytest.param([i / 15 for i in range(12)], settings(threshold=10.0), 8, id="rising"),
        pytest.param([0.5] * 12, settings(cap=1), 1, id="cap 1"),
        pytest.param([0.5] * 12, settings(window=30), 8, id="window longer than the run"),
        pytest.param([1.0 - i / 15 for i in range(12)], settings(window=1), 1, id="window 1: spans no step at all"),
        pytest.param([0.5] * 12, settings(window=8), 8, id="window as long as the cap: one step too late"),
        pytest.param([0.9] + [0.5] * 11, settings(window=7), 7, id="flat at the last step before the cap"),
        pytest.param([math.nan] * 12, settings(), 8, id="no number"),
        pytest.param([0.5, math.nan] + [0.5] * 10, settings(), 4, id="no number within the first window"),
        pytest.param([math.inf] * 12, settings(), 8, id="infinite"),
        pytest.param([0.9, 0.7, 0.6, 0.57, 0.56, 0.56] + [0.6] * 6, settings(), 5, id="the slope of a falling curve"),
    ],
)
def test_edge_cases(curve: list[float], chosen: PublishedSettings, tau1: int) -> None:
    policy = run(curve, chosen)
    assert (policy.tau1, policy.tau2) == (tau1, tau1 + chosen.values[2])


def test_a_slope_of_exactly_the_threshold_is_not_flat() -> None:
    curve = [1.0, 1.0, 0.75, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]
    # With L = 2: slopes 1/8, 1/8, 0 after steps 2, 3, 4.
    assert run(curve, settings(window=2, threshold=1 / 8, cap=7)).tau1 == 4
    assert run(curve, settings(window=2, threshold=0.126, cap=7)).tau1 == 2


def test_the_window_spans_one_step_less_than_it_divides_by() -> None:
    curve = [9.0, 0.9, 0.8, 0.6, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]
    # With L = 3 the first slope is taken after step 3 between steps 1 and 3: 0.3 / 3, and after it 0.3 / 3, 0.1 / 3.
    assert run(curve, settings(window=3, threshold=0.09, cap=7)).tau1 == 5
    assert run(curve, settings(window=3, threshold=0.11, cap=7)).tau1 == 3


@given(generations())
def test_what_comes_after_tau1_changes_nothing(generation: tuple[list[float], PublishedSettings]) -> None:
    curve, chosen = generation
    tau1, tau2 = published_taus(curve, chosen)
    changed = [value if step <= tau1 else math.nan for step, value in enumerate(curve)]
    policy = run(changed, chosen)
    assert (policy.tau1, policy.tau2) == (tau1, tau2)


@pytest.mark.parametrize(
    ("chosen", "steps", "message"),
    [
        (settings(steps=5, cap=15), 20, "tau_cap 15 [+] parallel_steps 5 = 20 lies beyond the last of 20 steps [(]19"),
        (settings(steps=30, cap=1), 20, "tau_cap 1 [+] parallel_steps 30 = 31 lies beyond the last of 20 steps"),
    ],
)
def test_settings_that_contradict_the_number_of_steps(chosen: PublishedSettings, steps: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        PublishedPolicy(chosen, steps)


def test_the_parallel_phase_may_end_with_the_last_step() -> None:
    policy = run([1.0 - i / 30 for i in range(20)], settings(steps=5, cap=14))
    assert (policy.tau1, policy.tau2) == (14, 19)
    assert policy.phase(19) is Phase.PARALLEL


@pytest.mark.parametrize(
    ("curve", "chosen", "words"),
    [
        ([i / 20 for i in range(12)], settings(), "rose at every step, where the slope rule cannot fire"),
        ([1 - i / 20 for i in range(12)], settings(), "fell at every step and never by less than 0.01 per step"),
        ([0.5, 0.9] * 6, settings(window=4), r"had no slope in \[0, 0.01\) over 4 steps"),
        ([0.5] * 12, settings(window=9), "tau_cap set tau1 = 8 before a slope over 9 steps could be taken"),
    ],
)
def test_a_cap_that_decided_is_said_aloud(curve: list[float], chosen: PublishedSettings, words: str) -> None:
    (note,) = run(curve, chosen).notes()
    assert re.search(words, note)
    assert "tau_cap set tau1 = 8" in note


def test_a_slope_that_decided_needs_no_note() -> None:
    assert run([0.5] * 12, settings()).notes() == []
    assert PublishedPolicy(settings(), 12).notes() == []  # nothing decided yet


def test_steps_without_guidance_have_no_discrepancy() -> None:
    """Guidance off in steps 2 to 4: no slope reaches into them, or over them."""
    policy = PublishedPolicy(settings(window=3, cap=12), 20)
    for step in (0, 1, 5, 6, 7, 8):
        policy.observe(step, 0.5, math.nan)
    assert policy.tau1 == 7  # steps 5 to 7 are the first window without a gap
    assert policy.notes() == []


@pytest.mark.parametrize(("back", "tau2"), [(9, 14), (16, 19), (19, 19)])
def test_a_cap_that_falls_into_steps_without_guidance_counts_from_the_next_one_with_it(back: int, tau2: int) -> None:
    """Guidance off from step 4 on, and on again at some step; phases of steps that ran stay what they were."""
    policy = PublishedPolicy(settings(threshold=1e-6, steps=5, cap=6), 20)
    for step in range(4):
        policy.observe(step, 1.0 - step / 10, math.nan)
    assert policy.phase(back) is Phase.WARM_UP
    policy.observe(back, 0.2, math.nan)
    assert (policy.tau1, policy.tau2) == (back, tau2)
    assert policy.phase(back) is Phase.WARM_UP
