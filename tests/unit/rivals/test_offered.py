"""Strategies of other packages: found by name, with settings of their own, imported only when they are used."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from hybridiff import ParallelConfig, UsageError, parallelize
from hybridiff.config import STRATEGY_GROUP
from hybridiff.strategies.offered import find_strategy
from hybridiff.utils import names
from support.pipelines import build


@pytest.fixture
def offer(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Offers a strategy under a name for one test."""

    def add(name: str, value: str) -> None:
        monkeypatch.setitem(names.offered(STRATEGY_GROUP), name, EntryPoint(name, value, STRATEGY_GROUP))

    return add


def test_a_strategy_of_another_package_is_found_by_its_name() -> None:
    config = ParallelConfig(strategy="asyncdiff", settings={"warm_up": 9, "stride": 2})
    assert find_strategy(config.strategy).name == "asyncdiff"
    assert json.loads(json.dumps(config.to_dict()))["settings"] == {"stride": 2, "warm_up": 9}
    assert config.to_dict() == ParallelConfig(strategy="asyncdiff", settings={"stride": 2, "warm_up": 9}).to_dict()
    assert hash(config) == hash(ParallelConfig(strategy="asyncdiff"))


def test_neither_names_nor_settings_import_a_strategy() -> None:
    code = (
        "import sys, hybridiff; hybridiff.ParallelConfig(strategy='asyncdiff', settings={'stride': 2})\n"
        "print([name for name in sys.modules if name == 'torch' or 'rivals' in name])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (
            {"strategy": "asyncdif"},
            "unknown strategy 'asyncdif'; choose one of serial, cfg, hybrid, published, .*asyncdiff",
        ),
        ({"strategy": "cfg", "settings": {"stride": 2}}, "strategy 'cfg' has no settings of its own, got stride"),
        ({"strategy": "asyncdiff", "settings": 3}, "settings must be a table, got 3"),
    ],
)
def test_what_needs_no_model_is_refused_at_once(config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=f"^{sentence}"):
        ParallelConfig(**config)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"strid": 2}, "unknown setting of the strategy 'strid'; choose one of stride, warm_up, time_shift, cut"),
        ({"stride": 3}, "stride must be at most 2, got 3"),
        ({"stride": "2"}, "stride must be an integer, got '2'"),
        ({"time_shift": 1}, "time_shift must be true or false, got 1"),
        ({"cut": "across"}, "unknown cut 'across'; choose one of chain, nested"),
    ],
)
def test_settings_are_checked_when_a_pipeline_is_made_parallel(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError) as error:
        parallelize(build("sd3"), ParallelConfig(strategy="asyncdiff", simulate=True, settings=settings))
    assert str(error.value) == sentence


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (
            "nowhere.to.find:Strategy",
            "strategy 'magic' cannot be loaded from nowhere.to.find:Strategy: No module named",
        ),
        ("hybridiff.config:Magic", "strategy 'magic' cannot be loaded from hybridiff.config:Magic: module"),
        ("hybridiff.config:ParallelConfig", "hybridiff.config:ParallelConfig is not a strategy: it must be a subclass"),
    ],
)
def test_what_is_no_strategy_is_refused(offer: Any, value: str, sentence: str) -> None:
    offer("magic", value)
    with pytest.raises(UsageError) as error:
        parallelize(build("sd3"), ParallelConfig(strategy="magic", simulate=True))
    assert str(error.value).startswith(sentence)


def test_a_strategy_that_is_built_in_is_not_replaced(offer: Any) -> None:
    offer("cfg", "hybridiff.rivals.asyncdiff:AsyncDiffStrategy")
    assert find_strategy("cfg").name == "cfg"
