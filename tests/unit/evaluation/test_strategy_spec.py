"""Strategies side by side, from one text."""

from __future__ import annotations

import pytest

from hybridiff import ParallelConfig, PublishedSettings, UsageError
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
    assert parse_strategy("hybrid:quality=high@2", 4) == ParallelConfig("hybrid", 2, quality="high")
    assert parse_strategy("hybrid:quality=0.25", 2).quality == "0.25"
    assert parse_strategy("hybrid:calibration=C:/a@b.json@1", 2).calibration == "C:/a@b.json"
    assert parse_strategy("published:slope_threshold=1e-3", 2).published.slope_threshold == 1e-3


@pytest.mark.parametrize(
    ("text", "devices", "message"),
    [
        ("magic", 2, "^unknown strategy 'magic'; choose one of serial, cfg, hybrid, published, "),
        ("cfg,cfg", 2, "^strategy 'cfg' is there twice"),
        ("cfg,", 2, "^unknown strategy 'cfg,'"),
        ("hybrid:speed=3", 2, "^hybrid:speed=3: unknown setting of 'hybrid' 'speed'; choose one of fidelity, quality"),
        ("cfg:fidelity=50", 2, "^cfg:fidelity=50: unknown setting of 'cfg' 'fidelity'; choose one of shards, disp"),
        ("serial:shards=2", 2, "^serial:shards=2: strategy 'serial' takes no settings$"),
        ("hybrid:fidelity", 2, "^hybrid:fidelity: settings of a strategy look like hybrid:KEY=VALUE, got 'fidelity'$"),
        ("hybrid:fidelity=high", 2, "^hybrid:fidelity=high: fidelity must be a number, got 'high'$"),
        ("hybrid:fidelity=500", 2, "^hybrid:fidelity=500: fidelity must be at most 100, got 500$"),
        ("cfg@many", 2, "^unknown strategy 'cfg@many'; choose one of serial"),
        ("cfg@4", 2, "^cfg@4: devices must be at most 2, got 4$"),
        ("cfg@0", 2, "^cfg@0: devices must be at least 1, got 0$"),
        ("serial@2", 2, "^serial@2: devices must be at most 1, got 2$"),
        ("published@1", 2, "^published@1: strategy 'published' needs an even number of ranks"),
        ("cfg:shards=2", 3, "^cfg:shards=2: 3 ranks cannot be grouped by shards of 2"),
    ],
)
def test_what_does_not_fit_is_named(text: str, devices: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_strategies(text, devices)
