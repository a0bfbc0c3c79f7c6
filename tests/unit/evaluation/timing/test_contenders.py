"""Strategies as one text names them."""

from __future__ import annotations

import pytest

from hybridiff import ParallelConfig, PublishedSettings, UsageError
from hybridiff.evaluation.timing.contenders import SERIAL, parse_contenders


def names(text: str, devices: int = 2) -> list[str]:
    return [contender.name for contender in parse_contenders(text, devices)]


def test_serial_comes_first_and_what_approximates_runs_on_one_device_too() -> None:
    assert names("cfg,hybrid,published") == ["serial on 1", "cfg on 2", "hybrid on 2", "hybrid on 1", "published on 2"]
    assert names("serial,cfg") == ["serial on 1", "cfg on 2"]
    assert names("hybrid:quality=exact") == ["serial on 1", "hybrid:quality=exact on 2"]
    assert names("cached_cfg,asyncdiff,sequence")[1:] == [
        "cached_cfg on 2",
        "cached_cfg on 1",
        "asyncdiff on 2",
        "sequence on 2",
    ]
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
    configs = [contender.config for contender in parse_contenders(text, 2)]
    assert [config for config in configs if config.devices == 2 or config.strategy == "serial"] == [
        ParallelConfig("serial", 1),
        ParallelConfig("hybrid", 2, fidelity=50),
        ParallelConfig("hybrid", 2, full_steps="0-4,8,11", step_kind="reuse"),
        ParallelConfig("published", 2, published=PublishedSettings(parallel_steps=10, tau_cap=3)),
        ParallelConfig("cfg", 2, shards=2),
    ]


def test_on_one_device_nothing_is_shared() -> None:
    found = parse_contenders("hybrid:shards=2", 4)
    assert [(one.devices, one.config.shards) for one in found] == [(1, None), (4, 2), (1, None)]


def test_nothing_is_named_twice() -> None:
    with pytest.raises(UsageError, match=r"^'cfg' on 2 is named twice$"):
        parse_contenders("cfg,cfg@2", 2)
