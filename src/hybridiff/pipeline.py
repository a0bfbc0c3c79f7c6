"""`parallelize`: a stock diffusers pipeline whose denoiser is answered by several ranks."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

from .agreement import agree_on_call, agree_on_setup, returns_output
from .config import ParallelConfig, checked_config
from .denoiser import DENOISERS
from .denoiser.adapters.base import execution_device
from .denoiser.attached import AttachedHook
from .denoiser.compiled import around_compiled
from .denoiser.control import CONTROLS, ControlNets
from .denoiser.hooks import DenoiserHook
from .denoiser.layout import GuidanceLayout
from .distributed.comm import Comm, LocalComm
from .distributed.placement import join_torchrun, leave_process_group
from .distributed.process import world_comm
from .errors import ShardError, UsageError
from .report.report import RunReport
from .run import Run
from .sharding.control import controls_in_parts
from .sharding.place import current_part
from .stock_call import arguments_of_rank, without_images

_HOOK_NAME = "hybridiff"
_ALONE = (
    "nothing is shared: this is the only rank; start more with torchrun --nproc-per-node 2, use hybridiff.Engine, or "
    "say devices=1"
)


def parallelize(pipe: Any, config: ParallelConfig | None = None, *, comm: Comm | None = None) -> ParallelPipeline:
    """Attach a strategy to a diffusers pipeline; to be called on every rank.

    Args:
        pipe: A loaded pipeline, the same on every rank, on this rank's device or offloaded. One that is parallel
            already is detached first.
        config: What to do; condition-based partitioning unless given. A calibration file is read here, once.
        comm: The ranks, which stay the caller's to close; by default those of the running process group, or else
            those that torchrun started, whose group is made here and left by `detach()`.

    Returns:
        A callable with the stock pipeline's arguments and output, on which `detach()` restores the pipeline.

    Raises:
        UsageError: the pipeline or the number of ranks does not fit the strategy, or ranks were given different
            configs; on every rank.
        RankError: a rank did not answer.
    """
    config = checked_config(config)
    if not hasattr(pipe, "device"):
        raise UsageError(f"a loaded diffusers pipeline is needed, got {type(pipe).__name__}")
    _detach_earlier(pipe)
    if comm is not None:
        return ParallelPipeline(pipe, config, comm)
    with contextlib.ExitStack() as undo:
        if not config.simulate and join_torchrun(execution_device(pipe), config.timeout):
            undo.callback(leave_process_group)
        comm = LocalComm(config.devices or 2) if config.simulate else world_comm(config.timeout)
        undo.callback(comm.close)
        parallel = ParallelPipeline(pipe, config, comm)
        parallel._leave = undo.pop_all().close  # what was made here, `detach` undoes
    return parallel


class ParallelPipeline:
    """A stock pipeline, called on every rank with the same arguments.

    Attributes:
        pipe: The stock pipeline; called directly it still runs on this rank alone.
        config: What the user asked for.
        comm: The ranks.
        report: What the last call that did not fail did; None before the first of them.
    """

    def __init__(self, pipe: Any, config: ParallelConfig, comm: Comm) -> None:
        self._setup = agree_on_setup(pipe, config, comm)
        self.pipe = pipe
        self.config = config
        self.comm = comm
        self.report: RunReport | None = None
        self._leave: Callable[[], None] = lambda: None
        self._hooked = {network: self._new_hook() for network in self._setup.networks}
        self._attached = [AttachedHook(network, hook, _HOOK_NAME) for network, hook in self._hooked.items()]
        self._control = ControlNets(pipe, self, _HOOK_NAME)
        self._layouts: dict[str, GuidanceLayout] = {}
        self._lock = threading.Lock()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the stock pipeline on all ranks.

        Returns:
            The stock output. On ranks other than 0 its images are None, unless `outputs="all"`.

        Raises:
            UsageError: ranks were called with different things, or a value is bad; on every rank. Or a call runs now.
            RankError: another rank failed; on every rank.
        """
        if not self._attached:
            raise UsageError("this pipeline was detached; call parallelize(pipe) again")
        if not self._lock.acquire(blocking=False):
            raise UsageError("this pipeline is in a call already: call it again after that; an Engine queues calls")
        try:
            return self._call(args, kwargs)
        finally:
            self._lock.release()

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        arguments = agree_on_call(self._setup, args, kwargs)
        run = Run(self._setup, arguments, self._layouts)
        try:
            for attached in self._attached:
                attached.relink()
            self._answer_by(run.answer)
            decodes = returns_output(self.config, self.comm) or self._setup.vae.is_shared
            controls = self._control.deferring(controls_in_parts(self._setup.groups.networks), current_part)
            with around_compiled(self.pipe, self._hooked, self._setup.is_split) as notes, run.watching(), controls:
                output = self.pipe(**arguments_of_rank(self.pipe, arguments, run.end_step, decodes))
        except ShardError as error:
            self._setup.groups.drop()
            run.follow(error)
        except BaseException as error:  # Ctrl-C too: the other ranks must not wait for this one
            self._setup.groups.drop()
            run.fail(error)
            raise
        finally:
            self._answer_by(None)
            self._setup.groups.release()
            if self._setup.staged is not None:
                self._setup.staged.release()
        self.report = run.finish()
        self.report.notes += notes
        if self.comm.size == 1 and self.config.devices is None and self.config.strategy != "serial":
            self.report.notes.append(_ALONE)
        return output if returns_output(self.config, self.comm) else without_images(output)

    def detach(self) -> None:
        """Restore the stock pipeline exactly."""
        if not self._attached:
            return
        if self._setup.staged is not None:
            self._setup.staged.remove()
        for attached in self._attached:
            attached.remove()
        self._attached = []
        self._control.remove()
        self._setup.groups.remove()
        self._leave()

    def __enter__(self) -> ParallelPipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def _new_hook(self) -> DenoiserHook:
        hook = DenoiserHook()
        hook.owner = self
        return hook

    def _answer_by(self, answer: Callable[..., Any] | None) -> None:
        for hook in self._hooked.values():
            hook.answer = answer


def _detach_earlier(pipe: Any) -> None:
    """Take the place of an earlier `parallelize` of the same network, such as one whose ranks are gone."""
    for attribute in (*DENOISERS, *CONTROLS):
        network = getattr(pipe, attribute, None)
        registry = getattr(getattr(network, "_orig_mod", network), "_diffusers_hook", None)
        earlier = registry.get_hook(_HOOK_NAME) if registry is not None else None
        if earlier is not None:
            earlier.owner.detach()
