"""How much faster ranks are that share one evaluation: `torchrun --nproc-per-node 2 -m benchmarks.shards`.

Two ranks, each pinned to a core, evaluate one branch of one picture together, and each the whole of it, in turns: the
medians are compared. For more ranks times are reckoned as for reports (`hybridiff.sharding.costs`): what the slowest
part takes by itself, and for each message its latency and its bytes at the rate seen between the two. The same
reckoning for two is held against what was measured. So is what the network takes for half of the picture by itself,
which knows nothing of the other half: what cutting the picture can give where nothing else is saved.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

from hybridiff.distributed.placement import Placement
from hybridiff.distributed.process import ProcessComm
from hybridiff.evaluation.machine import versions
from hybridiff.models.compiling import compile_denoisers
from hybridiff.sharding.costs import Link, ShardCosts, measure_shards
from hybridiff.sharding.group import ProcessGroup, ThreadGroup, play
from hybridiff.sharding.network import ShardedNetwork, shard_network
from hybridiff.utils.clock import timed
from hybridiff.utils.tables import align

from .networks import NETWORKS, make_network

RANKS = (2, 4, 8)
TIMEOUT = 300.0


def measure(names: Sequence[str], sizes: Sequence[int], repeats: int, compile: str) -> Iterator[dict[str, Any]]:
    """One row per network, size of picture and number of ranks; on both ranks.

    Args:
        names: Of the networks.
        sizes: Pixels of a side.
        repeats: Of each measurement.
        compile: What of a network is compiled, see `compiling.COMPILES`; both the whole and the parts run so.
    """
    (comm,) = ProcessComm(TIMEOUT).split([range(2)])
    assert comm is not None
    group = ProcessGroup(comm, torch.device("cpu"))
    for name in names:
        for pixels in sizes:
            network, call = make_network(name, pixels)
            compile_denoisers(SimpleNamespace(unet=network), compile)
            sharded = shard_network(network)
            assert sharded is not None
            yield from _rows(name, pixels, sharded, call, group, repeats)
            sharded.remove()


def _rows(
    name: str, pixels: int, sharded: ShardedNetwork, call: dict[str, Any], group: ProcessGroup, repeats: int
) -> Iterator[dict[str, Any]]:
    forward = sharded.network.forward
    together = sharded.shared_by(group, forward)
    half = _halved(call)
    whole, shared, halved = _in_turns(
        [lambda: forward(**call), lambda: together(**call), lambda: forward(**half)], repeats
    )
    link = Link.measure(group, group.device)
    for ranks in RANKS:
        costs = replace(_costs(sharded, call, ranks), whole=whole, link=link)
        yield {
            "network": name,
            "pixels": pixels,
            "ranks": ranks,
            "seconds_measured": shared if ranks == group.count else None,
            "seconds_half": halved,
            "speedup": whole / shared if ranks == group.count else None,
            "speedup_reckoned": 1 / costs.share,
            **costs.to_dict(),
        }


def _costs(sharded: ShardedNetwork, call: dict[str, Any], ranks: int) -> ShardCosts:
    """What it costs so many ranks, all of which are played, to share a call."""
    forward = sharded.network.forward
    threads = [ThreadGroup(index, ranks) for index in range(ranks)]
    play(threads, lambda thread: sharded.shared_by(thread, forward)(**call))  # shows the lengths of all parts
    dist.barrier()
    return measure_shards(
        [threads[0], threads[ranks // 2]],
        lambda: forward(**call),
        lambda part: sharded.shared_by(part, forward)(**call),
        torch.device("cpu"),
    )


def _halved(call: dict[str, Any]) -> dict[str, Any]:
    """The call for the upper half of its picture."""
    name = next(iter(call))
    picture = call[name]
    return call | {name: picture[:, :, : picture.shape[2] // 2].contiguous()}


def _in_turns(works: Sequence[Callable[[], Any]], repeats: int) -> list[float]:
    """Medians of things that both ranks do in turns, in seconds.

    A turn is two evaluations, of which the second is timed: it finds the memory of one like it, as steps of a run do.
    """
    times: list[list[float]] = [[] for _ in works]
    for turn in range(repeats + 1):
        for work, seconds in zip(works, times, strict=True):
            work()
            dist.barrier()
            taken = timed(work, torch.device("cpu"))
            if turn:  # the first one warms up
                seconds.append(taken)
    return [median(seconds) for seconds in times]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark from the command line, under torchrun."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shards", description=(__doc__ or "").split(":")[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--pixels", nargs="+", type=int, default=[512, 1024], help="a side (default 512 1024)")
    parser.add_argument("--repeats", type=int, default=5, help="(default 5)")
    parser.add_argument("--compile", action="store_true", help="with compiled blocks, the whole network, too")
    parser.add_argument("--output", type=Path, default=Path("out/shards.json"), help="(default out/shards.json)")
    options = parser.parse_args(arguments)
    place = Placement.resolve(device="cpu")
    if place.world != 2:
        parser.error("start two ranks: torchrun --nproc-per-node 2 -m benchmarks.shards")
    place.take_core()
    place.join(TIMEOUT)
    torch.set_grad_enabled(False)
    compile = "blocks" if options.compile else "none"
    rows = list(measure(options.networks, options.pixels, options.repeats, compile))
    if place.rank == 0:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        told = {"versions": versions(), "compile": compile, "rows": rows}
        options.output.write_text(json.dumps(told, indent=1) + "\n")
        how = " (compiled)" if options.compile else ""
        head = (
            "network",
            "pixels",
            "ranks",
            f"whole{how}",
            "half by itself",
            "part alone",
            "reckoned",
            "measured",
            "messages",
            "MB a rank",
        )
        sys.stdout.write(align([head, *map(_cells, rows)]) + "\n")
    dist.destroy_process_group()


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    measured = "" if row["speedup"] is None else f"{row['speedup']:.2f}x"
    return (
        row["network"],
        str(row["pixels"]),
        str(row["ranks"]),
        f"{row['whole']:.3f} s",
        f"{row['seconds_half']:.3f} s",
        f"{row['part']:.3f} s",
        f"{row['speedup_reckoned']:.2f}x",
        measured,
        str(row["messages"]),
        f"{row['received'] / 1e6:.1f}",
    )


if __name__ == "__main__":
    main()
