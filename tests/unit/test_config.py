from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest

from hybridiff import ParallelConfig, PublishedSettings, UsageError
from hybridiff.config import (
    LONGEST_TIMEOUT,
    STEP_KINDS,
    STRATEGIES,
    check_ranks,
    parse_steps,
    quality_value,
)
from hybridiff.schedule.kinds import StepKind
from hybridiff.strategies import STRATEGIES as CLASSES
from hybridiff.utils.checked import check_limits, field_types


def test_every_strategy_and_step_kind_of_the_config_exists() -> None:
    assert set(STRATEGIES) == set(CLASSES)
    assert all(CLASSES[name].name == name for name in STRATEGIES)
    assert set(STEP_KINDS) < {kind.value for kind in StepKind}


@pytest.mark.parametrize("documented", [ParallelConfig, PublishedSettings])
def test_every_field_says_what_it_is_for(documented: Any) -> None:
    texts = [entry.metadata["help"] for entry in dataclasses.fields(documented)]
    assert all(texts)
    assert len(set(texts)) == len(texts)
    assert not any(text.endswith(".") for text in texts)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"strategy": "magic"}, "unknown strategy 'magic'; choose one of serial, cfg, hybrid, published"),
        ({"strategy": "reuse"}, "unknown strategy 'reuse'; choose one of serial, cfg, hybrid, published"),
        ({"strategy": 3}, "unknown strategy 3; choose one of"),
        ({"outputs": "some"}, "unknown outputs 'some'; choose one of leader, all"),
        ({"outputs": None}, "unknown outputs None; choose one of"),
        ({"step_kind": "full"}, "unknown step_kind 'full'; choose one of cached, reuse"),
        ({"step_kind": "pipelined"}, "unknown step_kind 'pipelined'; choose one of cached, reuse"),
        ({"quality": "best"}, "quality must be draft, balanced, high, exact or a number from 0 to 1, got 'best'"),
        ({"quality": 1.01}, "quality must be .* from 0 to 1, got 1.01"),
        ({"quality": -0.01}, "quality must be .* from 0 to 1, got -0.01"),
        ({"quality": math.nan}, "quality must be .* from 0 to 1, got nan"),
        ({"quality": "nan"}, "quality must be .* from 0 to 1, got 'nan'"),
        ({"quality": math.inf}, "quality must be .* from 0 to 1, got inf"),
        ({"quality": True}, "quality must be .* from 0 to 1, got True"),
        ({"quality": [0.5]}, r"quality must be .* from 0 to 1, got \[0.5\]"),
        ({"devices": 0}, "devices must be at least 1, got 0"),
        ({"devices": -2}, "devices must be at least 1, got -2"),
        ({"devices": 10**6}, "devices must be at most 4096, got 1000000"),
        ({"devices": 2.0}, r"devices must be an integer, got 2\.0"),
        ({"devices": math.nan}, "devices must be an integer, got nan"),
        ({"devices": "2"}, "devices must be an integer, got '2'"),
        ({"devices": True}, "devices must be an integer, got True"),
        ({"displaced": 1}, "displaced must be true or false, got 1"),
        ({"displaced_warm_up": -1}, "displaced_warm_up must be at least 0, got -1"),
        (
            {"displaced": True, "shards": 1},
            "displaced messages are those of ranks that share an image, got shards=1; use",
        ),
        *[
            ({"displaced": True, "strategy": name}, f"displaced messages are for strategy 'cfg', got '{name}'")
            for name in ("serial", "hybrid", "published")
        ],
        ({"timeout": 0.0}, "timeout must be above 0, got 0"),
        ({"timeout": -1.0}, "timeout must be above 0, got -1"),
        ({"timeout": math.nan}, "timeout must be a finite number, got nan"),
        ({"timeout": math.inf}, "timeout must be a finite number, got inf"),
        ({"timeout": -math.inf}, "timeout must be a finite number, got -inf"),
        ({"timeout": 1e12}, "timeout must be at most 604800, got 1e"),
        ({"timeout": None}, "timeout must be a number, got None"),
        ({"tolerance": -0.1}, "tolerance must be at least 0, got -0.1"),
        ({"tolerance": math.nan}, "tolerance must be a finite number, got nan"),
        ({"tolerance": math.inf}, "tolerance must be a finite number, got inf"),
        ({"tolerance": "0.1"}, "tolerance must be a number, got '0.1'"),
        ({"tolerance": False}, "tolerance must be a number, got False"),
        ({"fidelity": 9.99}, "fidelity must be at least 10, got 9.99"),
        ({"fidelity": -50}, "fidelity must be at least 10, got -50"),
        ({"fidelity": 100.5}, "fidelity must be at most 100, got 100.5"),
        ({"fidelity": math.nan}, "fidelity must be a finite number, got nan"),
        ({"fidelity": math.inf}, "fidelity must be a finite number, got inf"),
        ({"fidelity": -math.inf}, "fidelity must be a finite number, got -inf"),
        ({"fidelity": "50"}, "fidelity must be a number, got '50'"),
        ({"fidelity": True}, "fidelity must be a number, got True"),
        ({"full_steps": "0-4;8"}, "full_steps must look like 0-4,8,11, got '0-4;8'"),
        ({"full_steps": 5}, "full_steps must be text, got 5"),
        ({"simulate": "yes"}, "simulate must be true or false, got 'yes'"),
        ({"simulate": 1}, "simulate must be true or false, got 1"),
        ({"trace": None}, "trace must be true or false, got None"),
        ({"published": None}, "published must be PublishedSettings, got None"),
        ({"published": {"tau_cap": 3}}, r"published must be PublishedSettings, got \{'tau_cap': 3\}"),
    ],
    ids=str,
)
def test_bad_values_are_refused(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=f"^{sentence}"):
        ParallelConfig(**values)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        *[
            ({name: value}, f"{name} must be {words}")
            for name in ("slope_window", "parallel_steps", "tau_cap")
            for value, words in [
                (0, "at least 1, got 0"),
                (-3, "at least 1, got -3"),
                (2.5, r"an integer, got 2\.5"),
                (math.nan, "an integer, got nan"),
                (math.inf, "an integer, got inf"),
                ("4", "an integer, got '4'"),
                (True, "an integer, got True"),
            ]
        ],
        ({"slope_threshold": 0.0}, "slope_threshold must be above 0, got 0"),
        ({"slope_threshold": -1e-3}, "slope_threshold must be above 0, got -0.001"),
        ({"slope_threshold": math.nan}, "slope_threshold must be a finite number, got nan"),
        ({"slope_threshold": math.inf}, "slope_threshold must be a finite number, got inf"),
        ({"slope_threshold": "small"}, "slope_threshold must be a number, got 'small'"),
    ],
    ids=str,
)
def test_bad_settings_of_the_published_rule_are_refused(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=f"^{sentence}$"):
        PublishedSettings(**values)


def test_numeric_fields_cannot_be_forgotten() -> None:
    """Every field that takes a number has limits, or a check of its own; none takes what is not finite."""
    numeric = {
        (documented, name): float if float in types else int
        for documented in (ParallelConfig, PublishedSettings)
        for name, types in field_types(documented).items()
        if {int, float} & set(types)
    }
    assert {name for _, name in numeric} == {
        "shards",
        "displaced_warm_up",
        "devices",
        "fidelity",
        "quality",
        "tolerance",
        "timeout",
        "slope_window",
        "slope_threshold",
        "parallel_steps",
        "tau_cap",
    }
    for (documented, name), _ in numeric.items():
        for value in (math.nan, math.inf, -math.inf, -1):
            with pytest.raises(UsageError, match=name):
                documented(**{name: value})


def test_an_integer_will_do_for_any_number() -> None:
    assert ParallelConfig("hybrid", timeout=60, tolerance=1, quality=1).timeout == 60
    assert PublishedSettings(slope_threshold=1).slope_threshold == 1


def test_the_limits_themselves_are_allowed() -> None:
    assert ParallelConfig("hybrid", timeout=LONGEST_TIMEOUT, tolerance=0.0, devices=4096, quality=0.0).devices == 4096
    check_limits("x", 1.0, least=1.0, most=1.0)
    with pytest.raises(UsageError, match="x must be above 1, got 1"):
        check_limits("x", 1.0, above=1.0)


def test_it_is_frozen_plain_data() -> None:
    config = ParallelConfig(strategy="published", devices=2, published=PublishedSettings(tau_cap=4))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.devices = 3  # type: ignore[misc]
    read = json.loads(json.dumps(config.to_dict()))
    assert ParallelConfig(**read | {"published": PublishedSettings(**read["published"])}) == config


@pytest.mark.parametrize(
    ("strategy", "allowed"),
    [
        ("serial", {1, 2, 3, 4, 5, 6}),
        ("cfg", {1, 2, 3, 4, 5, 6}),
        ("hybrid", {1, 2, 3, 4, 5, 6}),
        ("published", {2, 4, 6}),
    ],
)
def test_numbers_of_ranks(strategy: str, allowed: set[int]) -> None:
    config = ParallelConfig(strategy=strategy)
    for ranks in range(1, 7):
        if ranks in allowed:
            check_ranks(config, ranks)
        else:
            with pytest.raises(UsageError, match=f"needs an even number of ranks.*got {ranks}; use "):
                check_ranks(config, ranks)


@pytest.mark.parametrize("strategy", ["serial", "published"])
def test_strategies_whose_ranks_cannot_share_an_image(strategy: str) -> None:
    sentence = f"^strategy '{strategy}' cannot share an image between ranks; use shards=1, or 'cfg' or 'hybrid'$"
    with pytest.raises(UsageError, match=sentence):
        check_ranks(ParallelConfig(strategy=strategy, shards=2), 4)


@pytest.mark.parametrize("step_kind", [None, "cached", "reuse"])
def test_steps_of_every_kind_may_be_of_shared_images(step_kind: str | None) -> None:
    check_ranks(ParallelConfig("hybrid", step_kind=step_kind, shards=2), 4)


def test_the_sentences_about_ranks_name_the_remedy() -> None:
    sentence = "'published' needs an even number of ranks, 2 at least, got {}; use --devices {}, or strategy 'hybrid'"
    for ranks, remedy in ((1, 2), (5, 4)):
        with pytest.raises(UsageError, match=sentence.format(ranks, remedy)):
            check_ranks(ParallelConfig(strategy="published"), ranks)


@pytest.mark.parametrize("name", ["quality", "tolerance", "full_steps"])
def test_a_promise_leaves_nothing_else_to_decide(name: str) -> None:
    given = {"quality": "draft", "tolerance": 0.1, "full_steps": "0-4"}[name]
    sentence = f"give either fidelity or {name}: both decide which steps are full"
    with pytest.raises(UsageError, match=f"^{sentence}$"):
        ParallelConfig("hybrid", fidelity=50, **{name: given})  # type: ignore[arg-type]


@pytest.mark.parametrize("quality", ["exact", "balanced", 0.0, 1, "0.5"])
def test_a_promise_goes_with_no_quality(quality: str | float) -> None:
    with pytest.raises(UsageError, match="give either fidelity or quality"):
        ParallelConfig("hybrid", fidelity=50, quality=quality)


def test_a_promise_of_cached_steps_only() -> None:
    assert ParallelConfig("hybrid", fidelity=50, step_kind="cached").fidelity == 50
    with pytest.raises(UsageError, match=r"^fidelity is promised for cached steps only, got step_kind 'reuse'$"):
        ParallelConfig("hybrid", fidelity=50, step_kind="reuse")


@pytest.mark.parametrize("strategy", sorted({*STRATEGIES} - {"hybrid"}))
def test_a_promise_of_hybrid_only(strategy: str) -> None:
    with pytest.raises(UsageError, match=f"^fidelity is for strategy 'hybrid', got '{strategy}'$"):
        ParallelConfig(strategy, fidelity=50)


@pytest.mark.parametrize("fidelity", [10, 10.0, 47.5, 100, 100.0])
def test_promises_that_can_be_made(fidelity: float) -> None:
    config = ParallelConfig("hybrid", fidelity=fidelity)
    assert config.fidelity == fidelity
    read = json.loads(json.dumps(config.to_dict()))
    assert ParallelConfig(**read | {"published": PublishedSettings(**read["published"])}) == config


@pytest.mark.parametrize("strategy", ["serial", "cfg", "published"])
@pytest.mark.parametrize(
    ("name", "value"), [("quality", "high"), ("tolerance", 0.1), ("step_kind", "reuse"), ("full_steps", "0")]
)
def test_settings_of_hybrid_are_refused_elsewhere(strategy: str, name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"^{name} is for strategy 'hybrid', got '{strategy}'$"):
        ParallelConfig(strategy, **{name: value})


def test_no_quality_is_balanced() -> None:
    assert ParallelConfig().quality is None
    assert quality_value(None) == quality_value("balanced") == 0.5


@pytest.mark.parametrize(
    ("quality", "value"), [("draft", 0.25), ("balanced", 0.5), ("high", 0.75), ("exact", 1.0), (0, 0.0), ("0.9", 0.9)]
)
def test_qualities_by_name_and_number(quality: str | float, value: float) -> None:
    assert quality_value(ParallelConfig("hybrid", quality=quality).quality) == value


@pytest.mark.parametrize(
    ("text", "steps"),
    [("0", [0]), ("0-4,8,11", [0, 1, 2, 3, 4, 8, 11]), (" 3, 1 - 2,2", [1, 2, 3]), ("7-7", [7])],
)
def test_steps_as_text(text: str, steps: list[int]) -> None:
    assert parse_steps(text) == steps


@pytest.mark.parametrize(
    "text", ["", ",", "0,", "a", "1.5", "-1", "0-", "-4", "0--4", "0-4-8", "4-0", "nan", "0-100000", "0-99999999999"]
)
def test_text_that_names_no_steps(text: str) -> None:
    with pytest.raises(UsageError, match=f"full_steps must look like 0-4,8,11, got '{text}'"):
        parse_steps(text)


PRESET = PublishedSettings(12, 4e-4, 5, 15)


def test_what_the_user_says_of_the_published_rule_beats_the_preset() -> None:
    assert PublishedSettings().or_else(PRESET) == PRESET
    assert PublishedSettings(slope_window=9, tau_cap=4).or_else(PRESET) == dataclasses.replace(
        PRESET, slope_window=9, tau_cap=4
    )
    whole = PublishedSettings(1, 0.5, 7, 2)
    assert whole.or_else(PRESET) == whole
    assert whole.values == (1, 0.5, 7, 2)


def test_fifty_steps_change_nothing() -> None:
    assert PRESET.scaled(50) == PRESET
    assert PRESET.scaled(30, given_for=30) == PRESET
