from __future__ import annotations

import dataclasses
import json

import pytest

from hybridiff import ParallelConfig
from hybridiff.config import STRATEGIES, check_ranks
from hybridiff.strategies import STRATEGIES as CLASSES


def test_every_strategy_of_the_config_exists() -> None:
    assert set(STRATEGIES) == set(CLASSES)
    assert all(CLASSES[name].name == name for name in STRATEGIES)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"strategy": "magic"}, "unknown strategy 'magic'; choose one of serial, cfg"),
        ({"outputs": "some"}, "unknown outputs 'some'; choose one of leader, all"),
        ({"devices": 0}, "devices must be at least 1, got 0"),
        ({"timeout": 0.0}, "timeout must be a positive number of seconds, got 0.0"),
        ({"timeout": -1.0}, "timeout must be a positive number of seconds, got -1.0"),
        ({"timeout": float("nan")}, "timeout must be a positive number of seconds, got nan"),
    ],
)
def test_bad_values_are_refused(values: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        ParallelConfig(**values)  # type: ignore[arg-type]


def test_it_is_frozen_plain_data() -> None:
    config = ParallelConfig(strategy="serial", devices=2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.devices = 3  # type: ignore[misc]
    assert ParallelConfig(**json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("ranks", [1, 3, 5])
def test_odd_numbers_of_ranks_are_refused(ranks: int) -> None:
    with pytest.raises(ValueError, match=f"strategy 'cfg' needs a multiple of 2 ranks.*{ranks}.*{ranks + 1}"):
        check_ranks("cfg", ranks)


def test_numbers_of_ranks_by_strategy() -> None:
    for strategy, ranks in (("serial", 3), ("cfg", 4), ("reuse", 1), ("reuse", 6), ("hybrid", 2)):
        check_ranks(strategy, ranks)
    with pytest.raises(ValueError, match="'reuse' needs a multiple of 2 ranks"):
        check_ranks("reuse", 3)
    with pytest.raises(ValueError, match="'hybrid' runs on 2 ranks, got 4"):
        check_ranks("hybrid", 4)
