from __future__ import annotations

import dataclasses
import json

import pytest

from hybridiff import ParallelConfig
from hybridiff.config import BETWEEN, STRATEGIES, check_ranks, parse_steps
from hybridiff.schedule.kinds import BETWEEN as KINDS
from hybridiff.strategies import STRATEGIES as CLASSES


def test_every_strategy_of_the_config_exists() -> None:
    assert set(STRATEGIES) == set(CLASSES)
    assert all(CLASSES[name].name == name for name in STRATEGIES)
    assert set(BETWEEN) == set(KINDS)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"strategy": "magic"}, "unknown strategy 'magic'; choose one of serial, cfg"),
        ({"outputs": "some"}, "unknown outputs 'some'; choose one of leader, all"),
        ({"devices": 0}, "devices must be at least 1, got 0"),
        ({"timeout": 0.0}, "timeout must be a positive number of seconds, got 0.0"),
        ({"timeout": -1.0}, "timeout must be a positive number of seconds, got -1.0"),
        ({"timeout": float("nan")}, "timeout must be a positive number of seconds, got nan"),
        ({"switching": "magic"}, "unknown switching 'magic'; choose one of guided, published, fixed"),
        ({"between": "full"}, "unknown between 'full'; choose one of skipped, reuse, pipelined, mixed"),
        ({"forecast": "cubic"}, "unknown forecast 'cubic'; choose one of hold, linear, quadratic"),
        ({"quality": "best"}, "quality must be draft, balanced, high, exact or a number from 0 to 1, got 'best'"),
        ({"quality": 1.01}, "quality must be .* from 0 to 1, got 1.01"),
        ({"quality": float("nan")}, "quality must be .* from 0 to 1, got nan"),
        ({"quality": None}, "quality must be .* from 0 to 1, got None"),
        ({"tolerance": -0.1}, "tolerance must be a number of at least 0, got -0.1"),
        ({"settled": float("nan")}, "settled must be a number of at least 0, got nan"),
        ({"catch_up": float("inf")}, "catch_up must be a number of at least 0, got inf"),
        ({"longest_interval": 0}, "longest_interval must be at least 1, got 0"),
        ({"patience": 0}, "patience must be at least 1, got 0"),
        ({"full_steps": "0-4;8"}, "full_steps must look like 0-4,8,11, got '0-4;8'"),
        ({"outer_share": 1.0}, "outer_share must lie between 0 and 1, got 1.0"),
        ({"strategy": 3}, "unknown strategy 3; choose one of"),
        ({"outputs": None}, "unknown outputs None; choose one of"),
        ({"tau1": "5"}, "tau1 must be a whole number, got '5'"),
        ({"tau1": 5.0}, r"tau1 must be a whole number, got 5\.0"),
        ({"devices": True}, "devices must be a whole number, got True"),
        ({"timeout": None}, "timeout must be a number, got None"),
        ({"tolerance": "0.1"}, "tolerance must be a number, got '0.1'"),
        ({"quality": True}, "quality must be text or a number, got True"),
        ({"full_steps": 5}, "full_steps must be text, got 5"),
        ({"calibration": ["a.json"]}, "calibration must be text, got"),
        ({"simulate": "yes"}, "simulate must be true or false, got 'yes'"),
    ],
)
def test_bad_values_are_refused(values: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        ParallelConfig(**values)  # type: ignore[arg-type]


def test_a_whole_number_will_do_for_any_number() -> None:
    assert ParallelConfig(timeout=60, tolerance=1, slope_threshold=0, quality=1).timeout == 60


def test_it_is_frozen_plain_data() -> None:
    config = ParallelConfig(strategy="serial", devices=2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.devices = 3  # type: ignore[misc]
    assert ParallelConfig(**json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("config", "allowed"),
    [
        ({"strategy": "serial"}, {1, 2, 3, 4, 5, 6}),
        ({"strategy": "cfg"}, {2, 4, 6}),
        ({"strategy": "reuse"}, {1, 2, 4, 6}),
        ({"strategy": "reuse", "between": "mixed"}, {2}),
        ({"strategy": "reuse", "switching": "published"}, {1, 2, 4, 6}),
        ({"strategy": "hybrid"}, {1, 2, 4, 6}),
        ({"strategy": "hybrid", "between": "skipped"}, {1, 2, 4, 6}),
        ({"strategy": "hybrid", "between": "reuse"}, {1, 2, 4, 6}),
        ({"strategy": "hybrid", "between": "pipelined"}, {2}),
        ({"strategy": "hybrid", "between": "mixed"}, {2}),
        ({"strategy": "hybrid", "switching": "published"}, {2}),
        ({"strategy": "hybrid", "switching": "published", "between": "skipped"}, {1, 2, 4, 6}),
    ],
    ids=lambda value: " ".join(value.values()) if isinstance(value, dict) else "",
)
def test_numbers_of_ranks(config: dict[str, str], allowed: set[int]) -> None:
    for ranks in range(1, 7):
        if ranks in allowed:
            check_ranks(ParallelConfig(**config), ranks)  # type: ignore[arg-type]
        else:
            with pytest.raises(ValueError, match=f"need.* 2 .*ranks.*got {ranks}; use "):
                check_ranks(ParallelConfig(**config), ranks)  # type: ignore[arg-type]


def test_the_sentences_about_ranks_name_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"'cfg' needs a multiple of 2 ranks.*got 3; use 4 \(--devices 4"):
        check_ranks(ParallelConfig(), 3)
    with pytest.raises(ValueError, match="pipelined steps need 2 ranks, got 4; use --devices 2, or --between skipped"):
        check_ranks(ParallelConfig(strategy="hybrid", between="mixed"), 4)


@pytest.mark.parametrize(
    ("quality", "value"), [("draft", 0.25), ("balanced", 0.5), ("high", 0.75), ("exact", 1.0), (0, 0.0), ("0.9", 0.9)]
)
def test_qualities_by_name_and_number(quality: str | float, value: float) -> None:
    assert ParallelConfig(quality=quality).quality_value == value


@pytest.mark.parametrize(
    ("text", "steps"),
    [("0", [0]), ("0-4,8,11", [0, 1, 2, 3, 4, 8, 11]), (" 3, 1 - 2,2", [1, 2, 3]), ("7-7", [7])],
)
def test_steps_as_text(text: str, steps: list[int]) -> None:
    assert parse_steps(text) == steps


@pytest.mark.parametrize("text", ["", ",", "0,", "a", "1.5", "-1", "0-", "-4", "0--4", "0-4-8", "4-0"])
def test_text_that_names_no_steps(text: str) -> None:
    with pytest.raises(ValueError, match=f"full_steps must look like 0-4,8,11, got '{text}'"):
        parse_steps(text)


def test_naming_steps_implies_a_fixed_schedule() -> None:
    assert ParallelConfig(strategy="hybrid").rule == "guided"
    assert ParallelConfig(strategy="reuse").rule == "fixed"
    assert ParallelConfig(strategy="hybrid", full_steps="0-4,8").rule == "fixed"
    assert ParallelConfig(strategy="hybrid", full_interval=3).rule == "fixed"
    assert ParallelConfig(strategy="hybrid", switching="published", tau1=3).rule == "published"
