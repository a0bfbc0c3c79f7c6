"""What crosses the wire and what each rank computes: counted from outside, step by step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from hybridiff import ParallelConfig, parallelize
from hybridiff.distributed.comm import ProcessComm
from support.networks import count_layers
from support.pipelines import build, denoiser_of, draw
from support.ranks import run_ranks
from support.schedules import capped

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

    def gather(self, packets: Mapping[int, torch.Tensor], out: torch.Tensor) -> None:
        self.messages.append(("gather", packets[self.rank].nbytes * (self.size - 1)))
        super().gather(packets, out)

    def swap(self, peers: Any, outgoing: Mapping[int, torch.Tensor], incoming: Any) -> None:
        self.messages.append(("swap", outgoing[self.rank].nbytes))
        super().swap(peers, outgoing, incoming)

    def hand_out(self, source: int, packets: Mapping[int, torch.Tensor]) -> None:
        self.messages.append(("hand out", packets[self.rank].nbytes if self.rank == source else 0))
        super().hand_out(source, packets)

    def exchange(self, thing: Any) -> Any:
        self.messages.append(("exchange", 0))
        return super().exchange(thing)


def watch(name: str, config: dict[str, Any], pictures: int) -> list[dict[str, Any]]:
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

    changes: dict[str, Any] = {"num_inference_steps": STEPS, "num_images_per_prompt": pictures}
    parallel = parallelize(pipe, ParallelConfig(outputs="all", **config), comm=comm)
    draw(parallel, name, **changes)
    counts.clear()
    comm.messages.clear()
    draw(parallel, name, **changes, callback_on_step_end=note)
    assert parallel.report is not None
    for step, record in zip(seen, parallel.report.to_dict()["steps"], strict=True):
        step["bytes"], step["kind"] = record["bytes_by_purpose"], record["kind"]
    return seen


CASES = [
    # name, cut, pictures, elements of the boundaries a picture: what goes down, what comes back
    pytest.param("sdxl", None, 1, (16 * 8 * 8, 16 * 16 * 16), id="U-Net, cut below the finest level"),
    pytest.param("sd15", None, 2, (16 * 8 * 8, 16 * 16 * 16), id="U-Net, two pictures"),
    pytest.param("sd3", 1, 1, ((64 + 24) * 16,) * 2, id="transformer: picture and text cross"),
    pytest.param("sd3.5", 2, 2, ((64 + 24) * 16,) * 2, id="transformer, two pictures"),
]


@pytest.mark.parametrize(("name", "cut", "pictures", "boundaries"), CASES)
def test_layers_messages_and_bytes(name: str, cut: int | None, pictures: int, boundaries: tuple[int, int]) -> None:
    config = capped(STEPS, TAU1, PARALLEL_STEPS, cut=_level_cut(name) if cut is None else cut)
    first, second = run_ranks(watch, 2, name, config, pictures)
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
        expected = ["swap", "hand out"] if is_pipelined else ["gather"]
        assert kinds[0] == kinds[1]
        assert [kind for kind in kinds[0] if kind != "exchange"] == expected
        assert "exchange" not in kinds[0] or step == 0  # agreements come before the first step only

        # The boundaries and one prediction, or two predictions; a number a packet says how the rank fares.
        prediction = 4 * 16 * 16 * pictures * FLOAT
        if is_pipelined:
            purposes = {"boundary": sum(boundaries) * pictures * FLOAT, "prediction": prediction, "control": 3 * FLOAT}
        else:
            purposes = {"prediction": 2 * prediction, "control": 2 * FLOAT}
        assert ours["bytes"] == theirs["bytes"] == purposes
        assert sum(size for rank in (ours, theirs) for _, size in rank["messages"]) == sum(purposes.values())

    inner, outer = first[PIPELINED[0]]["layers"], second[PIPELINED[0]]["layers"]
    last, middle = ("conv_out", "mid_block.") if "sd3" not in name else ("proj_out", "transformer_blocks.2.")
    assert last in outer
    assert last not in inner
    assert any(layer.startswith(middle) and times for layer, times in inner.items())


MESSAGES = {"full": ["gather"], "skipped": [], "reuse": ["gather"], "pipelined": ["swap", "hand out"]}


@pytest.mark.parametrize(
    ("name", "ranks", "between", "kinds"),
    [
        ("sd15", 2, "skipped", "ffsfssfs"),
        ("sd3", 4, "skipped", "ffsfssfs"),
        ("sd15", 2, "mixed", "ffpfprfp"),
        ("sd3", 4, "reuse", "ffrfrrfr"),
    ],
)
def test_steps_of_all_kinds(name: str, ranks: int, between: str, kinds: str) -> None:
    """A skipped step runs no layer and sends nothing, and around it everything is in order."""
    config = {"strategy": "hybrid", "switching": "fixed", "full_steps": "0,1,3,6", "between": between}
    seen = run_ranks(watch, ranks, name, config | {"cut": _level_cut(name) if name == "sd15" else 1}, ranks // 2)
    whole = seen[0][1]["layers"]
    for step, letter in enumerate(kinds):
        here = [rank[step] for rank in seen]
        assert {one["kind"][0] for one in here} == {letter}
        messages = [[kind for kind, _ in one["messages"] if kind != "exchange" or step] for one in here]
        assert messages == [MESSAGES[here[0]["kind"]]] * ranks
        assert all(one["bytes"] == here[0]["bytes"] for one in here)
        assert sum(size for one in here for _, size in one["messages"]) == sum(here[0]["bytes"].values())

        blocks = [{layer for layer in one["layers"] if layer.startswith(BLOCKS)} for one in here]
        everything = {layer for layer in whole if layer.startswith(BLOCKS)}
        if letter == "s":
            assert not any(one["layers"] for one in here)
        elif letter == "f":
            assert blocks == [everything] * ranks
        elif letter == "r":
            assert blocks[0] < everything
            assert blocks == [blocks[0]] * ranks
            outer = blocks[0]
        else:
            assert blocks[0] | blocks[1] == everything
            assert not blocks[0] & blocks[1]
    if between == "mixed":
        assert outer == blocks[1]  # of the last step, which is pipelined: the stage that reuse steps run


def _level_cut(name: str) -> int:
    """Index of the cut that leaves the finest level outside."""
    from hybridiff.denoiser.adapters import unet

    network = build(name).unet
    names = [unit.name for unit in unet.list_units(network)]
    ends = [(names[cut.entry], names[cut.exit]) for cut in unet.list_cuts(network)]
    return ends.index(("down_blocks.0.downsamplers.0", "up_blocks.1.upsamplers.0"))
