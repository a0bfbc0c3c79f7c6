"""Strategies as one text names them."""

from __future__ import annotations

import pytest

from hybridiff import ParallelConfig, PublishedSettings, UsageError
from hybridiff.evaluation.contenders import SERIAL, parse_contenders


def names(text: str, devices: int = 2) -> list[str]:
    return [contender.name for contender in parse_contenders(text, devices)]


def test_serial_comes_first_and_what_approximates_runs_on_one_device_too() -> None:
    assert names("cfg,hybrid,published") == ["serial on 1", "cfg on 2", "hybrid on 2", "hybrid on 1", "published on 2"]
    assert names("serial,cfg") == ["serial on 1", "cfg on 2"]
    assert names("hybrid:quality=exact") == ["serial on 1", "hybrid:quality=exact on 2"]
    assert parse_contenders("serial", 1) == [SERIAL]


def test_a_number_of_devices_can_be_given_to_each() -> None:
    assert names("cfg@2,cfg@4,hybrid@1,hybrid", devices=4) == [
        "serial on 1",
        "cfg on 2",
        "cfg on 4",
        "hybrid on 1",
        "hybrid on 4",
    ]


def test_settings_are_those_of_the_configs() -> None:
    hybrid = "hybrid:fidelity=50,hybrid:full_steps=0-4,8,11:step_kind=reuse"
    text = f"{hybrid},published:parallel_steps=10:tau_cap=3,cfg:shards=2"
    found = {contender.label: contender.config for contender in parse_contenders(text, 2)}
    assert list(found.values()) == [
        ParallelConfig("serial"),
        ParallelConfig("hybrid", fidelity=50),
        ParallelConfig("hybrid", full_steps="0-4,8,11", step_kind="reuse"),
        ParallelConfig("published", published=PublishedSettings(parallel_steps=10, tau_cap=3)),
        ParallelConfig("cfg", shards=2),
    ]


def test_on_one_device_nothing_is_shared() -> None:
    found = parse_contenders("hybrid:shards=2", 4)
    assert [(one.devices, one.config.shards) for one in found] == [(1, None), (4, 2), (1, None)]


@pytest.mark.parametrize(
    ("text", "devices", "message"),
    [
        ("magic", 2, "^unknown strategy 'magic'; choose one of serial, cfg, hybrid, published$"),
        ("hybrid:speed=3", 2, "^unknown setting of 'hybrid' 'speed'; choose one of fidelity, quality"),
        ("cfg:fidelity=50", 2, "^unknown setting of 'cfg' 'fidelity'; choose one of shards$"),
        ("serial:shards=2", 2, "^strategy 'serial' takes no settings, got 'serial:shards=2'$"),
        ("hybrid:fidelity", 2, "^settings of a strategy look like hybrid:KEY=VALUE, got 'hybrid:fidelity'$"),
        ("hybrid:fidelity=high", 2, "^fidelity must be a number, got 'high'$"),
        ("hybrid:fidelity=500", 2, "^fidelity must be at most 100, got 500$"),
        ("cfg@many", 2, "^'cfg@many' must end with a number of devices, such as cfg@1$"),
        ("cfg@4", 2, "^devices of 'cfg' must be at most 2, got 4$"),
        ("cfg@0", 2, "^devices of 'cfg' must be at least 1, got 0$"),
        ("serial@2", 2, "^serial runs on one device, got 'serial@2'$"),
        ("published@1", 2, "^strategy 'published' needs 2 ranks, got 1"),
        ("cfg:shards=2", 3, "^3 ranks cannot be grouped by shards of 2"),
        ("cfg,cfg", 2, "^'cfg' on 2 is named twice$"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(text: str, devices: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_contenders(text, devices)
