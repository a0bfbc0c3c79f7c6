"""One rank: loads the pipeline, makes it parallel, answers requests.

Run as `python -m hybridiff.launch.worker FD` it is a process of an Engine, which talks to it over the inherited socket
FD.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
import os
import queue
import sys
import textwrap
import threading
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from .protocol import Failed, Generation, RankSpec, Request, Started, StepDone, Warned, receive, send

OnStep = Callable[[int, int], None]
Tell = Callable[[Any], None]
T = TypeVar("T")


class PipelineRank:
    """The parallel pipeline of one rank.

    Args:
        spec: Which rank it is, of what.

    Raises:
        ValueError: the model, scheduler or number of ranks does not fit.
    """

    def __init__(self, spec: RankSpec) -> None:
        from ..models.loading import load_pipeline
        from ..pipeline import parallelize

        pipe = load_pipeline(
            spec.model, spec.device, spec.dtype, scheduler=spec.scheduler, task=spec.task, variant=spec.variant
        )
        self.parallel = parallelize(pipe, spec.config)
        self.is_leader = spec.rank == 0
        pipe.set_progress_bar_config(disable=not self.is_leader)

    def generate(self, request: Request, on_step: OnStep | None = None) -> Generation:
        """Call the pipeline; on_step(done, total) follows every step, in place of the stock progress bar."""
        import torch

        generator = torch.Generator().manual_seed(request.seed)
        with _steps_told_to(self.parallel.pipe, on_step):
            output = self.parallel(**request.arguments, generator=generator)
        assert self.parallel.report is not None
        images = output.images.cpu() if isinstance(output.images, torch.Tensor) else output.images
        return Generation(images, self.parallel.report, request.seed)

    def close(self) -> None:
        """Restore the stock pipeline."""
        self.parallel.detach()


class _StepTeller:
    """Stands in for the tqdm bar of a stock pipeline."""

    def __init__(self, total: int, on_step: OnStep) -> None:
        self._total, self._done, self._on_step = total, 0, on_step

    def __enter__(self) -> _StepTeller:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, steps: int = 1) -> None:
        self._done += steps
        self._on_step(self._done, self._total)


@contextlib.contextmanager
def _steps_told_to(pipe: Any, on_step: OnStep | None) -> Iterator[None]:
    """Let a pipeline tell its steps; an attribute of this one object, gone afterwards."""
    if on_step is None:
        yield
        return
    pipe.progress_bar = lambda iterable=None, total=None: _StepTeller(total or 0, on_step)
    try:
        yield
    finally:
        del pipe.progress_bar


class _WarningTeller(logging.Handler):
    """Passes warnings of the libraries on to the parent: each once, and no essays."""

    def __init__(self, tell: Tell, longest: int = 300) -> None:
        super().__init__(logging.WARNING)
        self._tell = tell
        self._longest = longest
        self._told: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = textwrap.shorten(record.getMessage(), self._longest, placeholder=" ...")
        if text not in self._told:
            self._told.add(text)
            self._tell(Warned(text))


def join_process_group(spec: RankSpec, init_method: str) -> bool:
    """Find the other ranks.

    Args:
        spec: Which rank this is, of how many.
        init_method: `env://` under torchrun, or the file by which an Engine's ranks meet.

    Returns:
        Whether a process group was made here, to be left by `leave_process_group`.
    """
    import torch
    import torch.distributed as dist

    if spec.device != "cpu":
        torch.cuda.set_device(spec.device)
    if spec.ranks == 1 or dist.is_initialized():
        return False
    dist.init_process_group(
        "gloo" if spec.device == "cpu" else "nccl",
        init_method=init_method,
        rank=spec.rank,
        world_size=spec.ranks,
        timeout=timedelta(seconds=spec.startup_timeout),
    )
    return True


def leave_process_group() -> None:
    """Undo `join_process_group`."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def main(descriptor: int) -> None:
    """Serve an Engine over an inherited socket until it says stop (None) or is gone."""
    connection = Connection(descriptor)
    tell = functools.partial(send, connection)
    spec: RankSpec = receive(connection)
    requests: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
    threading.Thread(target=_pass_on, args=(connection, requests), daemon=True).start()
    rank = _attempt(lambda: _start(spec), tell)
    if rank is None:
        requests.get()  # the parent reads the failure, then stops this process
        return
    tell(Started())
    _answer(rank, requests, tell)
    rank.close()
    leave_process_group()


def _answer(rank: PipelineRank, requests: queue.SimpleQueue[Request | None], tell: Tell) -> None:
    """Answer requests until there are no more."""
    on_step = _say_nothing
    if rank.is_leader:
        on_step = lambda done, total: tell(StepDone(done, total))  # noqa: E731
        _pass_warnings_on(tell)
    while (request := requests.get()) is not None:
        generation = _attempt(functools.partial(rank.generate, request, on_step), tell)
        if generation is not None:
            tell(generation)


def _pass_on(connection: Connection, requests: queue.SimpleQueue[Request | None]) -> None:
    """Queue what the parent says; end this process at once, whatever it is doing, when the parent is gone."""
    while True:
        try:
            requests.put(receive(connection))
        except (EOFError, OSError):
            os._exit(1)


def _attempt(work: Callable[[], T], tell: Tell) -> T | None:
    """The result of some work, or None after telling the parent why there is none."""
    try:
        return work()
    except Exception as error:  # every failure goes to the parent, which decides what it means
        tell(_failure(error))
        return None
    finally:
        gc.collect()


def _failure(error: Exception) -> Failed:
    from ..distributed.comm import RankError

    return Failed(
        kind=type(error).__name__,
        text=str(error),
        traceback="".join(traceback.format_exception(error)),
        is_bad_input=isinstance(error, ValueError),
        is_echo=isinstance(error, RankError),
    )


def _start(spec: RankSpec) -> PipelineRank:
    if spec.device == "cpu":
        _take_one_core(spec.rank, spec.ranks)
    _hide_loading_bars()
    join_process_group(spec, f"file://{spec.rendezvous}")
    return PipelineRank(spec)


def _take_one_core(rank: int, ranks: int) -> None:
    """One thread, pinned where there is a core for each rank."""
    import torch

    torch.set_num_threads(1)
    if hasattr(os, "sched_getaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) >= ranks:
            os.sched_setaffinity(0, {cores[rank]})


def _hide_loading_bars() -> None:
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()


def _pass_warnings_on(tell: Tell) -> None:
    for library in ("diffusers", "transformers"):
        logging.getLogger(library).addHandler(_WarningTeller(tell))


def _say_nothing(done: int, total: int) -> None:
    pass


if __name__ == "__main__":
    main(int(sys.argv[1]))
