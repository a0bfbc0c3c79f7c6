"""What an Engine refuses before it starts anything."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hybridiff import Engine, ParallelConfig
from hybridiff.launch.engine import choose_device, is_under_torchrun

TORCHRUN = {"RANK": "0", "WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture(autouse=True)
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(specs: Any) -> None:
        raise AssertionError("ranks were started")

    monkeypatch.setattr("hybridiff.launch.engine.RankGroup", refuse)
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)


def with_gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


def test_device_is_cuda_where_there_is_a_gpu_for_each_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, 2)
    assert choose_device("auto", 2) == "cuda"
    assert choose_device("cuda", 1) == "cuda"
    assert choose_device("cpu", 2) == "cpu"


def test_device_is_the_cpu_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, 0)
    assert choose_device("auto", 2) == "cpu"
    with pytest.raises(ValueError, match="2 ranks requested, 0 GPUs found; use --device cpu"):
        choose_device("cuda", 2)


def test_fewer_gpus_than_ranks_are_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, 1)
    for device in ("auto", "cuda"):
        with pytest.raises(ValueError, match="3 ranks requested, 1 GPU found; use --devices 1 or --device cpu"):
            choose_device(device, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "tiny-sdxx"}, "unknown model 'tiny-sdxx'"),
        ({"devices": 3}, "strategy 'cfg' needs a multiple of 2 ranks, one half for each guidance branch; got 3"),
        ({"devices": 0}, "devices must be at least 1, got 0"),
        ({"device": "tpu"}, "unknown device 'tpu'; choose one of auto, cuda, cpu"),
        ({"dtype": "float8"}, "unknown dtype 'float8'"),
        ({"scheduler": "flow-euler"}, "flow-matching models, this is a diffusion model"),
        ({"timeout": -1.0}, "timeout must be a positive number"),
    ],
)
def test_bad_input_is_refused_before_ranks_start(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Engine(**({"model": "tiny-sdxl", "device": "cpu"} | options))


def test_torchrun_with_another_number_of_ranks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_under_torchrun()
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    assert is_under_torchrun()
    with pytest.raises(ValueError, match="2 ranks requested, torchrun started 4; use --devices 4"):
        Engine("tiny-sdxl", devices=2, device="cpu")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"generator": None}, "generator is not an argument .* give seed"),
        ({"return_dict": False}, "return_dict is not an argument"),
        ({"seed": -1}, "seed must be a whole number from 0"),
        ({"seed": 1.5}, "seed must be a whole number from 0"),
        ({"callback_on_step_end": lambda *_: {}}, "cannot travel to the ranks"),
        ({"height": 3}, "height must be a positive multiple of 8"),
    ],
)
def test_bad_requests_are_refused_before_they_are_sent(
    monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], message: str
) -> None:
    class Silent:
        ranks = ()

        def __init__(self, specs: Any) -> None:
            self.specs = specs

        def replies(self, *_: Any) -> list[Any]:
            return []

        def end(self) -> None:
            pass

        stop = end

    monkeypatch.setattr("hybridiff.launch.engine.RankGroup", Silent)
    with Engine("tiny-sdxl", config=ParallelConfig(strategy="cfg"), device="cpu") as engine:
        assert engine.config.devices == 2
        with pytest.raises(ValueError, match=message):
            engine.generate("a ring", **arguments)
