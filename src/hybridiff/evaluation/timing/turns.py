"""The one way of timing strategies: engines that stay open take turns, on pinned cores while all others work."""

from __future__ import annotations

import contextlib
import os
import statistics
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ...config import ParallelConfig
from ...launch import engine as launch
from ...launch.protocol import Generation

K = TypeVar("K")
T = TypeVar("T")


@dataclass(frozen=True)
class Spread:
    """Where repeats of one measurement lie: median, quartiles, extremes."""

    median: float
    low: float
    high: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        several = [*values, *values] if len(values) == 1 else values
        low, median, high = statistics.quantiles(several, n=4, method="inclusive")
        return cls(median, low, high, min(values), max(values))


def take_turns(
    works: Mapping[K, Callable[[], T]], repeats: int, on_turn: Callable[[K, int], None] = lambda work, repeat: None
) -> dict[K, list[T]]:
    """Do each work so many times, one after the other and again, so that a disturbance of the machine meets all.

    Args:
        works: What is done.
        repeats: How often.
        on_turn: Is told which comes next, and the number of the repeat, from 0.
    """
    results: dict[K, list[T]] = {key: [] for key in works}
    for repeat in range(repeats):
        for key, work in works.items():
            on_turn(key, repeat)
            results[key].append(work())
    return results


class EngineSet(Generic[K]):
    """Engines of one model, each with its own way to share a generation, that are kept open to take turns.

    One CPU device is one pinned core. What is timed on fewer cores than the largest engine has, is timed while serial
    generations of the same call occupy the others: on an idle machine one core has all of the memory's bandwidth.

    Args:
        model: See `Engine`.
        ways: Number of ranks and config of each.
        options: Further arguments of every engine.
    """

    def __init__(self, model: Any, ways: Mapping[K, tuple[int, ParallelConfig]], **options: Any) -> None:
        self._devices = {key: devices for key, (devices, _) in ways.items()}
        with contextlib.ExitStack() as undo:

            def start(devices: int, config: ParallelConfig) -> launch.Engine:
                return undo.enter_context(launch.Engine(model, devices, config, **options))

            self._engines = {key: start(*way) for key, way in ways.items()}
            self._others = []  # one for each core but the first
            for core in _further_cores(max(self._devices.values()), options.get("device")):
                with _on_core(core):
                    self._others.append(start(1, ParallelConfig("serial")))
            self._undo = undo.pop_all()

    def generate(self, key: K, prompt: Any, **call: Any) -> Generation:
        """Generate in one way while the cores that it leaves idle have an equal job."""
        with self._busy(self._others[self._devices[key] - 1 :], prompt, call):
            return self._engines[key].generate(prompt, **call)

    def __enter__(self) -> EngineSet[K]:
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    @staticmethod
    @contextlib.contextmanager
    def _busy(engines: Sequence[launch.Engine], prompt: Any, call: Mapping[str, Any]) -> Iterator[None]:
        done = threading.Event()
        with ThreadPoolExecutor(max(1, len(engines))) as pool:
            works = [pool.submit(_occupy, engine, done, prompt, call) for engine in engines]
            try:
                yield
            finally:
                done.set()
            for work in works:
                work.result()


class _Done(Exception):
    """What was timed is over."""


def _occupy(engine: launch.Engine, done: threading.Event, prompt: Any, call: Mapping[str, Any]) -> None:
    """Generate again and again until what is timed is over; returns when the core is idle."""

    def check(step: int, steps: int) -> None:
        if done.is_set():
            raise _Done

    with contextlib.suppress(_Done):
        while not done.is_set():
            engine.generate(prompt, on_step=check, **call)
    engine.drain()


def _further_cores(devices: int, device: Any) -> list[int]:
    """The cores beside the first one where each of so many CPU ranks has one; see `Placement.take_core`."""
    if device != "cpu" or not hasattr(os, "sched_getaffinity"):
        return []
    cores = sorted(os.sched_getaffinity(0))
    return cores[1:devices] if len(cores) >= devices else []


@contextlib.contextmanager
def _on_core(core: int) -> Iterator[None]:
    """What is started inside runs on this core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
