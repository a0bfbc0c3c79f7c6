"""Strategies side by side, from one text."""

from __future__ import annotations

import pytest

from hybridiff import ParallelConfig, PublishedSettings
from hybridiff.errors import UsageError
from hybridiff.evaluation.strategy_spec import parse_strategies, parse_strategy


def test_strategies_have_settings_behind_colons() -> None:
    text = "serial, cfg,hybrid:fidelity=50,hybrid:full-steps=0-4,8,11:step_kind=reuse,published:tau_cap=20"
    assert parse_strategies(text, 2) == {
        "serial": ParallelConfig("serial", 1),
        "cfg": ParallelConfig("cfg", 2),
        "hybrid:fidelity=50": ParallelConfig("hybrid", 2, fidelity=50),
        "hybrid:full-steps=0-4,8,11:step_kind=reuse": ParallelConfig(
            "hybrid", 2, full_steps="0-4,8,11", step_kind="reuse"
        ),
        "published:tau_cap=20": ParallelConfig("published", 2, published=PublishedSettings(tau_cap=20)),
    }


def test_values_are_of_the_type_of_the_field() -> None:
    assert parse_strategy("hybrid:quality=high:devices=4", 2) == ParallelConfig("hybrid", 4, quality="high")
    assert parse_strategy("hybrid:quality=0.25").quality == "0.25"
    assert parse_strategy("published:published.slope_threshold=1e-3").published.slope_threshold == 1e-3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("magic", "unknown strategy 'magic'; choose one of serial, cfg, hybrid, published"),
        ("cfg,cfg", "strategy 'cfg' is there twice"),
        ("cfg,", "unknown strategy 'cfg,'"),
        ("hybrid:speed=3", "hybrid:speed=3: unknown setting 'speed'; choose one of devices, shards, fidelity"),
        ("hybrid:simulate=true", "unknown setting 'simulate'"),
        ("hybrid:fidelity=much", "hybrid:fidelity=much: fidelity must be a number, got 'much'"),
        ("hybrid:fidelity=5", "hybrid:fidelity=5: fidelity must be at least 10, got 5"),
        ("cfg:fidelity=50", "fidelity is a promise of strategy 'hybrid', got 'cfg'"),
        ("published:devices=3", "published:devices=3: strategy 'published' needs 2 ranks, got 3"),
    ],
)
def test_what_does_not_fit_is_named(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_strategies(text, 2)
