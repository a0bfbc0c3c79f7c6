"""How much faster ranks are that share one evaluation: `torchrun --nproc-per-node 2 -m benchmarks.shards`.

Two ranks, each pinned to a core, evaluate one branch of one picture together, and each the whole of it, in turns: the
medians are compared. For more ranks times are reckoned: what the slowest part takes by itself, and for each message its
latency and its bytes at the rate seen between the two. The same reckoning for two is held against what was measured.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from hybridiff.distributed.comm import Comm
from hybridiff.distributed.placement import Placement
from hybridiff.distributed.process import ProcessComm
from hybridiff.evaluation.workload import versions
from hybridiff.sharding.group import ProcessGroup, ShardGroup, ThreadGroup, play
from hybridiff.sharding.network import ShardedNetwork, shard_network
from hybridiff.utils.tables import align

from .networks import NETWORKS, make_network

RANKS = (2, 4, 8)
TIMEOUT = 300.0


class PartAlone(ShardGroup):
    """One part by itself: what the others would say is what it says itself; notes the size of each message in bytes."""

    def __init__(self, index: int, lengths: dict[str, tuple[int, ...]], count: int) -> None:
        super().__init__(index, count)
        self._known, self.sizes = lengths, list[int]()

    def begin(self, form: object) -> None:
        self._lengths, self.sizes = dict(self._known), []

    def _all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        self.sizes.append(tensor.nbytes)
        return tensor.expand(self.count, *tensor.shape).contiguous()


@dataclass(frozen=True)
class Link:
    """What messages between two ranks cost.

    Attributes:
        latency: Seconds of the shortest message.
        rate: Bytes a second of long ones.
    """

    latency: float
    rate: float

    @classmethod
    def measure(cls, group: ProcessGroup, repeats: int) -> Link:
        """By messages of 16 bytes and of a megabyte."""
        short, long = (torch.zeros(size // 4) for size in (16, 2**20))
        latency = _seconds(lambda: group.all_gather(short), 10 * repeats)
        return cls(latency, long.nbytes / max(1e-9, _seconds(lambda: group.all_gather(long), repeats) - latency))

    def seconds(self, sizes: Sequence[int], ranks: int) -> float:
        """Of messages of so many bytes from each rank, one after the other."""
        return sum(self.latency + (ranks - 1) * size / self.rate for size in sizes)


def measure(names: Sequence[str], sizes: Sequence[int], repeats: int) -> Iterator[dict[str, Any]]:
    """One row per network, size of picture and number of ranks; on both ranks."""
    comm: Comm = ProcessComm(TIMEOUT)
    group = ProcessGroup(comm, torch.device("cpu"))
    for name in names:
        for pixels in sizes:
            network, call = make_network(name, pixels)
            sharded = shard_network(network)
            assert sharded is not None
            yield from _rows(name, pixels, sharded, call, group, repeats)
            sharded.remove()


def _rows(
    name: str, pixels: int, sharded: ShardedNetwork, call: dict[str, Any], group: ProcessGroup, repeats: int
) -> Iterator[dict[str, Any]]:
    forward = sharded.network.forward
    together = sharded.shared_by(group, forward)
    whole, shared = _in_turns(lambda: forward(**call), lambda: together(**call), repeats)
    link = Link.measure(group, repeats)
    for ranks in RANKS:
        alone, messages = _slowest_part(sharded, call, ranks, repeats)
        reckoned = alone + link.seconds(messages, ranks)
        yield {
            "network": name,
            "pixels": pixels,
            "ranks": ranks,
            "seconds_whole": whole,
            "seconds_measured": shared if ranks == group.count else None,
            "seconds_part": alone,
            "seconds_reckoned": reckoned,
            "speedup": whole / shared if ranks == group.count else None,
            "speedup_reckoned": whole / reckoned,
            "messages": len(messages),
            "megabytes_a_rank": sum(messages) * (ranks - 1) / 1e6,
        }


def _slowest_part(sharded: ShardedNetwork, call: dict[str, Any], ranks: int, repeats: int) -> tuple[float, list[int]]:
    """Seconds of the part that takes longest, by itself, and the bytes of its messages."""
    forward = sharded.network.forward
    threads = [ThreadGroup(index, ranks) for index in range(ranks)]
    play(threads, lambda thread: sharded.shared_by(thread, forward)(**call))  # shows the lengths of all parts
    parts = [PartAlone(index, threads[index]._lengths, ranks) for index in {0, ranks // 2}]
    timed = [_seconds(lambda part=part: sharded.shared_by(part, forward)(**call), repeats) for part in parts]  # type: ignore[misc]
    return max(timed), parts[0].sizes


def _in_turns(one: Callable[[], Any], other: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Medians of two things that both ranks do in turns, in seconds."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(repeats + 1):
        for work, seconds in zip((one, other), times, strict=True):
            dist.barrier()
            begun = time.perf_counter()
            work()
            if turn:  # the first one warms up
                seconds.append(time.perf_counter() - begun)
    return median(times[0]), median(times[1])


def _seconds(work: Callable[[], Any], repeats: int) -> float:
    """Median of some repeats that both ranks begin at once."""
    times = []
    for _ in range(repeats):
        dist.barrier()
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return median(times)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark from the command line, under torchrun."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shards", description=(__doc__ or "").split(":")[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--pixels", nargs="+", type=int, default=[512, 1024], help="a side (default 512 1024)")
    parser.add_argument("--repeats", type=int, default=5, help="(default 5)")
    parser.add_argument("--output", type=Path, default=Path("out/shards.json"), help="(default out/shards.json)")
    options = parser.parse_args(arguments)
    place = Placement.resolve(device="cpu")
    if place.world != 2:
        parser.error("start two ranks: torchrun --nproc-per-node 2 -m benchmarks.shards")
    place.take_core()
    place.join(TIMEOUT)
    torch.set_grad_enabled(False)
    rows = list(measure(options.networks, options.pixels, options.repeats))
    if place.rank == 0:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps({"versions": versions(), "rows": rows}, indent=1) + "\n")
        head = ("network", "pixels", "ranks", "whole", "part alone", "reckoned", "measured", "messages", "MB a rank")
        sys.stdout.write(align([head, *map(_cells, rows)]) + "\n")
    dist.destroy_process_group()


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    measured = "" if row["speedup"] is None else f"{row['speedup']:.2f}x"
    return (
        row["network"],
        str(row["pixels"]),
        str(row["ranks"]),
        f"{row['seconds_whole']:.3f} s",
        f"{row['seconds_part']:.3f} s",
        f"{row['speedup_reckoned']:.2f}x",
        measured,
        str(row["messages"]),
        f"{row['megabytes_a_rank']:.1f}",
    )


if __name__ == "__main__":
    main()
