from __future__ import annotations

import dataclasses
import json

import pytest

from hybridiff import ParallelConfig
from hybridiff.config import STRATEGIES
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
