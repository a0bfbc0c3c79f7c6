"""One rank: loads the pipeline, makes it parallel, answers requests.

Forked by `forkserver`, or run as `python -m hybridiff.launch.worker FD`, it is a process of an Engine, which talks to
it over the inherited socket FD.
"""

from __future__ import annotations

import gc
import importlib
import logging
import os
import pickle
import queue
import sys
import textwrap
import threading
import traceback
from multiprocessing.connection import Connection
from typing import Any

from ..arguments import check_known
from ..errors import RankError, UsageError
from ..models.loras import Lora
from .protocol import (
    Call,
    Cancel,
    Failed,
    Generation,
    OnStep,
    RankSpec,
    Reply,
    Request,
    Started,
    StepDone,
    Swap,
    Warned,
    receive,
    send,
)
from .steps import steps_told_to

IMPORTS = ("diffusers.pipelines.auto_pipeline", "transformers", "hybridiff.pipeline")
"""What ranks import whatever their model is; these import torch, and peft where it is installed."""


class PipelineRank:
    """The parallel pipeline of one rank; raises ValueError where the model, scheduler or number of ranks is wrong."""

    def __init__(self, spec: RankSpec) -> None:
        from ..models.loading import load_pipeline
        from ..pipeline import parallelize

        self.is_leader = spec.placement.rank == 0
        pipe = load_pipeline(spec.model, spec.placement.device, encodes=self.is_leader, **spec.loading)
        self._loras: tuple[Lora, ...] = tuple(spec.loading.get("loras", ()))
        self.parallel = parallelize(pipe, spec.config)
        pipe.set_progress_bar_config(disable=not self.is_leader)

    @property
    def is_lost(self) -> bool:
        """Whether it can answer no further call: the others cannot be reached, or its GPU answers no more."""
        import torch

        try:
            if self.parallel.pipe.device.type == "cuda":
                torch.cuda.synchronize(self.parallel.pipe.device)
        except RuntimeError:
            return True
        return self.parallel.comm.broken

    def generate(self, call: Call, on_step: OnStep | None = None) -> Generation:
        """Call the pipeline; on_step(done, total) follows every step, in place of the stock progress bar."""
        import torch

        from ..models.outputs import sampling_rate, take_output

        sizes = {"height", "width"}  # that of an image that is given, to whatever pipeline
        check_known(type(self.parallel.pipe), call.arguments.keys() - sizes)
        assert call.seed is not None
        generator = torch.Generator().manual_seed(call.seed)
        with steps_told_to(self.parallel.pipe, on_step):
            output = self.parallel(**call.arguments, generator=generator)
        assert self.parallel.report is not None
        made = take_output(output)
        if not made:
            found, name = ", ".join(vars(output)), type(self.parallel.pipe).__name__
            raise UsageError(
                f"{name} makes {found}, neither images, films nor sounds: call it by hybridiff.parallelize"
            )
        return Generation(
            made.get("images"),
            self.parallel.report,
            call.seed,
            frames=made.get("frames"),
            audios=made.get("audios"),
            sampling_rate=sampling_rate(self.parallel.pipe),
        )

    def put_loras(self, loras: tuple[Lora, ...]) -> None:
        """Let the pipeline have these LoRAs on all ranks, or those that it had where they do not fit one of them.

        Raises:
            UsageError: they do not fit; on every rank. It has none where those that it had are gone, too.
        """
        try:
            self._agree_on_loras(loras)
        except Exception as refused:
            try:
                self._agree_on_loras(self._loras)
            except UsageError as lost:
                self._agree_on_loras(())
                raise UsageError(
                    f"{refused}; nor can it have again what it had, so it has no LoRA now: {lost}"
                ) from lost
            raise

    def _agree_on_loras(self, loras: tuple[Lora, ...]) -> None:
        from ..distributed.consistency import require_same
        from ..models.loras import put_loras

        description: dict[str, str] | Exception = {"LoRAs": str([(lora.name, lora.scale) for lora in loras])}
        try:
            put_loras(self.parallel.pipe, loras)
        except Exception as error:  # told to all ranks, raised by require_same
            description = error
        require_same(self.parallel.comm, description)
        self._loras = loras

    def close(self) -> None:
        """Restore the stock pipeline."""
        self.parallel.detach()


class _Cancelled(Exception):
    """Nobody waits for this request any more; the run carries it to all ranks, as it does every error."""


class _Parent:
    """The Engine, at the other end of a socket."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._requests: queue.SimpleQueue[Request] = queue.SimpleQueue()
        self._lock = threading.Lock()  # libraries log warnings from any thread
        self._current = self._cancelled = 0

    def listen(self) -> None:
        """Queue its requests; end this process at once, whatever it is doing, when the parent hangs up."""
        while True:
            try:
                message = receive(self._connection)
            except (EOFError, OSError):
                os._exit(0)
            if isinstance(message, Cancel):
                self._cancelled = message.id
            else:
                self._requests.put(message)

    def next_request(self) -> Request:
        """Wait for a request, which is then the current one."""
        request = self._requests.get()
        self._current = request.id
        return request

    def tell(self, message: Any) -> None:
        """Say something about the current request."""
        with self._lock:
            send(self._connection, Reply(self._current, message))

    def tell_step(self, done: int, total: int) -> None:
        """Say how far the current request is; raises `_Cancelled` if nobody waits for it any more."""
        self.tell(StepDone(done, total))
        if self._cancelled == self._current:
            raise _Cancelled


class _WarningTeller(logging.Handler):
    """Passes warnings of the libraries on to the parent: each once, and no essays."""

    def __init__(self, parent: _Parent, longest: int = 300) -> None:
        super().__init__(logging.WARNING)
        self._parent = parent
        self._longest = longest
        self._told: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = textwrap.shorten(record.getMessage(), self._longest, placeholder=" ...")
        if text not in self._told:
            self._told.add(text)
            self._parent.tell(Warned(text))


def import_all() -> None:
    """Import what ranks need, uncollected: a quarter of the time would go to collections that find nothing.

    Later ones leave it alone, so that they are short, and forks share its memory.
    """
    gc.disable()
    for name in IMPORTS:
        importlib.import_module(name)
    gc.freeze()
    gc.enable()


def main(descriptor: int) -> None:
    """Serve an Engine over an inherited socket until it hangs up."""
    connection = Connection(descriptor)
    spec: RankSpec = receive(connection)
    parent = _Parent(connection)
    threading.Thread(target=parent.listen, daemon=True).start()
    try:
        rank = _start(spec)
        parent.tell(Started())
    except Exception as error:  # every failure goes to the parent, which decides what it means
        parent.tell(_failure(error, is_lost=True))
    else:
        _serve(rank, parent)


def _start(spec: RankSpec) -> PipelineRank:
    import_all()  # already done where this process was forked

    import diffusers
    import transformers

    spec.placement.take_core()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    spec.placement.join(spec.startup_timeout, spec.rendezvous)
    return PipelineRank(spec)


def _serve(rank: PipelineRank, parent: _Parent) -> None:
    if rank.is_leader:
        for library in ("diffusers", "transformers"):
            logging.getLogger(library).addHandler(_WarningTeller(parent))
    on_step = parent.tell_step if rank.is_leader else None
    while True:
        request = parent.next_request()
        try:
            content = _unpack(request)
            if isinstance(content, Swap):
                rank.put_loras(content.loras)
                parent.tell(Started())
            else:
                parent.tell(rank.generate(content, on_step))
        except Exception as error:
            parent.tell(_failure(error, rank.is_lost))
        gc.collect()


def _unpack(request: Request) -> Call | Swap:
    try:
        content: Call | Swap = pickle.loads(request.content)
    except Exception as error:  # unpickling runs what it likes
        raise UsageError(
            f"an argument cannot be read by the ranks ({type(error).__name__}: {error}); callbacks must be functions "
            "of a module that they can import"
        ) from error
    return content


def _failure(error: Exception, is_lost: bool) -> Failed:
    return Failed(
        kind=type(error).__name__,
        text=str(error),
        traceback="".join(traceback.format_exception(error)),
        is_bad_input=isinstance(error, ValueError),
        is_echo=isinstance(error, RankError),
        is_lost=is_lost,
    )


if __name__ == "__main__":
    main(int(sys.argv[1]))
