"""What crosses the wire and what each rank computes: counted from outside, step by step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from hybridiff import ParallelConfig, parallelize
from hybridiff.distributed.process import ProcessComm
from hybridiff.distributed.status import SLOT
from support.by_hand import level_split
from support.networks import count_layers
from support.pipelines import build, denoiser_of, generate
from support.ranks import run_ranks
from support.schedules import capped, split_at

pytestmark = pytest.mark.distributed

STEPS, TAU1, PARALLEL_STEPS = 8, 2, 3
PIPELINED = range(TAU1 + 1, TAU1 + PARALLEL_STEPS + 1)
BLOCKS = ("conv_in", "down_blocks.", "mid_block.", "up_blocks.", "transformer_blocks.")
FLOAT = 4  # bytes


class RecordingComm(ProcessComm):
    """Writes down every message: its kind, and the bytes that this rank puts on the wire."""

    def __init__(self, timeout: float) -> None:
        super().__init__(timeout)
        self.messages: list[tuple[str, int]] = []

    def all_gather(self, buffers: Mapping[int, torch.Tensor], out: torch.Tensor) -> None:
        self.messages.append(("gather", buffers[self.rank].nbytes * (self.size - 1)))
        super().all_gather(buffers, out)

    def sendrecv(self, outgoing: Mapping[int, Mapping[int, torch.Tensor]], incoming: Any) -> None:
        self.messages.append(("sendrecv", sum(buffer.nbytes for buffer in outgoing[self.rank].values())))
        super().sendrecv(outgoing, incoming)

    def broadcast(self, buffers: Mapping[int, Mapping[int, torch.Tensor]]) -> None:
        mine = buffers[self.rank][self.rank].nbytes * (self.size - 1) if self.rank in buffers else 0
        self.messages.append(("broadcast", mine))
        super().broadcast(buffers)

    def all_gather_object(self, thing: Any) -> Any:
        self.messages.append(("objects", 0))
        return super().all_gather_object(thing)


def watch(
    name: str, config: dict[str, Any], images: int, changes: dict[str, Any] | None = None
) -> list[dict[str, Any]]:
    """What one rank did in each step of its second run; the first one may have measured the network."""
    pipe = build(name)
    counts = count_layers(denoiser_of(pipe))
    comm = RecordingComm(60.0)
    seen: list[dict[str, Any]] = []

    def note(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append({"layers": Counter(counts), "messages": list(comm.messages)})
        counts.clear()
        comm.messages.clear()
        return tensors

    changes = {"num_inference_steps": STEPS, "num_images_per_prompt": images} | (changes or {})
    parallel = parallelize(pipe, ParallelConfig(outputs="all", **config), comm=comm)
    generate(parallel, name, **changes)
    counts.clear()
    comm.messages.clear()
    generate(parallel, name, **changes, callback_on_step_end=note)
    assert parallel.report is not None
    for step, record in zip(seen, parallel.report.to_dict()["steps"], strict=True):
        step["bytes"], step["kind"] = record["bytes_by_purpose"], record["kind"]
    return seen


CASES = [
    # name, split point, images, elements of the boundaries per image: what goes down, what comes back
    pytest.param("sdxl", None, 1, (16 * 8 * 8, 16 * 16 * 16), id="U-Net, split below the finest level"),
    pytest.param("sd15", None, 2, (16 * 8 * 8, 16 * 16 * 16), id="U-Net, two images"),
    pytest.param("sd3", 1, 1, ((64 + 24) * 16,) * 2, id="transformer: image and text cross"),
    pytest.param("sd3.5", 2, 2, ((64 + 24) * 16,) * 2, id="transformer, two images"),
]


@pytest.mark.parametrize(("name", "split_point", "images", "boundaries"), CASES)
def test_layers_messages_and_bytes(
    name: str, split_point: int | None, images: int, boundaries: tuple[int, int]
) -> None:
    config = capped(STEPS, TAU1, PARALLEL_STEPS, _finest_level(name) if split_point is None else split_point)
    first, second = run_ranks(watch, 2, name, config, images)
    whole = first[TAU1]["layers"]
    blocks = {layer for layer in whole if layer.startswith(BLOCKS)}
    for step in range(STEPS):
        is_pipelined = step in PIPELINED
        ours, theirs = first[step], second[step]

        # Every layer of every block runs on one rank in a pipelined step, on both in a full one.
        for layer in blocks:
            times = {ours["layers"][layer], theirs["layers"][layer]}
            assert times == ({0, whole[layer]} if is_pipelined else {whole[layer]}), (step, layer)
        if is_pipelined:
            assert {layer for layer in blocks if ours["layers"][layer]}, step
            assert {layer for layer in blocks if theirs["layers"][layer]}, step

        # The same messages in the same order on both.
        kinds = [[kind for kind, _ in rank["messages"]] for rank in (ours, theirs)]
        expected = MESSAGES["pipelined" if is_pipelined else "full"]
        assert kinds[0] == kinds[1]
        assert [kind for kind in kinds[0] if kind != "objects"] == expected
        assert "objects" not in kinds[0] or step == 0  # agreements come before the first step only

        # The boundaries and one prediction, or two predictions; a slot in each buffer says how the rank fares, and an
        # element beside each boundary whether all that its sender sends is finite.
        prediction, slot = 4 * 16 * 16 * images * FLOAT, SLOT * FLOAT
        if is_pipelined:
            control = 3 * slot + 2 * FLOAT
            purposes = {"boundary": sum(boundaries) * images * FLOAT, "prediction": prediction, "control": control}
        else:
            purposes = {"prediction": 2 * prediction, "control": 2 * slot}
        assert ours["bytes"] == theirs["bytes"] == purposes
        assert sum(size for rank in (ours, theirs) for _, size in rank["messages"]) == sum(purposes.values())

    inner, outer = first[PIPELINED[0]]["layers"], second[PIPELINED[0]]["layers"]
    last, middle = ("conv_out", "mid_block.") if "sd3" not in name else ("proj_out", "transformer_blocks.2.")
    assert last in outer
    assert last not in inner
    assert any(layer.startswith(middle) and times for layer, times in inner.items())


MESSAGES = {"full": ["gather"], "cached": [], "reuse": ["gather"], "pipelined": ["sendrecv", "broadcast"]}


@pytest.mark.parametrize(
    ("name", "ranks", "step_kind", "kinds"),
    [
        ("sd15", 2, "cached", "ffcfccfc"),
        ("sd3", 4, "cached", "ffcfccfc"),
        ("sd15", 2, "reuse", "ffrfrrfr"),
        ("sd3", 4, "reuse", "ffrfrrfr"),
    ],
)
def test_steps_of_all_kinds(name: str, ranks: int, step_kind: str, kinds: str) -> None:
    """A cached step runs no layer and sends nothing, and around it everything is in order."""
    split_point = _finest_level(name) if name == "sd15" else 1
    config = {"strategy": "hybrid", "full_steps": "0,1,3,6", "step_kind": step_kind}
    seen = run_ranks(watch, ranks, name, config | {"calibration": split_at("reuse", split_point)}, ranks // 2)
    whole = seen[0][1]["layers"]
    everything = {layer for layer in whole if layer.startswith(BLOCKS)}
    for step, letter in enumerate(kinds):
        here = [rank[step] for rank in seen]
        assert {one["kind"][0] for one in here} == {letter}
        messages = [[kind for kind, _ in one["messages"] if kind != "objects" or step] for one in here]
        assert messages == [MESSAGES[here[0]["kind"]]] * ranks
        assert all(one["bytes"] == here[0]["bytes"] for one in here)
        assert sum(size for one in here for _, size in one["messages"]) == sum(here[0]["bytes"].values())

        blocks = [{layer for layer in one["layers"] if layer.startswith(BLOCKS)} for one in here]
        if letter == "c":
            assert not any(one["layers"] for one in here)
        elif letter == "f":
            assert blocks == [everything] * ranks
        else:
            assert blocks[0] < everything
            assert blocks == [blocks[0]] * ranks


@pytest.mark.parametrize(
    ("changes", "config", "purposes"),
    [
        pytest.param({}, {"strategy": "serial"}, {"control": 2 * (1 + SLOT) * FLOAT}, id="serial"),
        pytest.param({"guidance_scale": 1.0}, {}, {"control": 2 * (1 + SLOT) * FLOAT}, id="one image, unguided"),
    ],
)
def test_where_nothing_is_shared_a_heartbeat_says_how_ranks_fare(
    changes: dict[str, Any], config: dict[str, Any], purposes: dict[str, int]
) -> None:
    for steps in run_ranks(watch, 2, "sd3", config, 1, changes):
        assert [step["bytes"] for step in steps] == [purposes] * STEPS
        assert [[kind for kind, _ in step["messages"] if kind != "objects"] for step in steps] == [["gather"]] * STEPS
        assert all(size * 2 == purposes["control"] for step in steps for kind, size in step["messages"] if size)


def _finest_level(name: str) -> int:
    """Index of the split point that leaves the finest level outside."""
    return level_split(build(name).unet, 1)


def test_a_trace_holds_what_all_ranks_did_on_every_rank() -> None:
    config = {"strategy": "hybrid", "full_steps": "0,1,3,6", "step_kind": "reuse", "trace": True}
    first, second = run_ranks(spans_of_a_run, 2, config)
    assert first == second
    for rank in range(2):
        assert first.count((rank, "whole network, own branch")) == 4
        assert first.count((rank, "outer stage, own branch")) == 4
        assert first.count((rank, "wait: gather the predictions")) >= STEPS


def spans_of_a_run(config: dict[str, Any]) -> list[tuple[int, str]]:
    parallel = parallelize(build("sd3"), ParallelConfig(outputs="all", **config))
    generate(parallel, "sd3", num_inference_steps=STEPS)
    assert parallel.report is not None
    return [(span.rank, span.name) for span in parallel.report.spans]
