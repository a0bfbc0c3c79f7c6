"""Offload that a pipeline is loaded with; what it does to runs stands in tests/unit/test_offload.py."""

from __future__ import annotations

from typing import Any

import pytest

from hybridiff import Engine, UsageError, load_pipeline
from hybridiff.models.offload import OFFLOADS, check_offload, place


@pytest.mark.parametrize("offload", ["model", "sequential"])
def test_offload_of_cpu_ranks_is_refused(offload: str) -> None:
    sentence = (
        f"offload {offload} keeps networks in main memory until a GPU needs them; on the CPU they are there anyway"
    )
    for load in (load_pipeline, Engine):
        with pytest.raises(UsageError, match=sentence):
            load("tiny-sdxl", device="cpu", offload=offload)


def test_unknown_offload_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown offload 'disk'"):
        load_pipeline("tiny-sdxl", offload="disk")


def test_what_gpus_can_do() -> None:
    for offload in OFFLOADS:
        check_offload(offload, "cuda:1")


def test_each_rank_offloads_from_its_own_gpu_and_reads_no_encoder_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, asked = load_pipeline("tiny-sdxl", encodes=False), []

    def record(self: Any, device: str) -> None:
        asked.append((device, set(self._exclude_from_cpu_offload)))

    usual = set(pipe._exclude_from_cpu_offload)
    for name in ("model", "sequential"):
        monkeypatch.setattr(type(pipe), f"enable_{name}_cpu_offload", record)
        place(pipe, "cuda:1", name)
    assert asked == [("cuda:1", usual), ("cuda:1", usual | {"text_encoder", "text_encoder_2"})]
    assert usual == set(type(pipe)._exclude_from_cpu_offload)
