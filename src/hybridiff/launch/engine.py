"""`Engine`: parallel generation without torchrun, from a script, a notebook or the command line."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from numbers import Integral
from types import TracebackType
from typing import Any, ClassVar

from ..config import ParallelConfig, check_ranks, checked_config
from ..distributed.placement import DEFAULT_RANKS, leave_process_group
from ..errors import EngineError, RankError, UsageError
from ..models.controlnets import find_controlnets
from ..models.folder import ModelFolder
from ..models.loading import DTYPES, find_model
from ..models.loras import Lora, find_loras
from ..models.offload import check_offload
from ..models.schedulers import check_scheduler
from ..utils.names import require_known
from ..utils.prompts import SEEDS
from .launcher import RankGroup
from .processes import find_placement
from .protocol import Call, Generation, OnStep, RankSpec, Swap, pack
from .turns import Turns

logger = logging.getLogger("hybridiff")


class Engine:
    """A model on several ranks, ready for requests.

    The ranks are processes of their own, started here and ended by `close()`, by leaving the `with` block, or with
    this process, however it ends. Under torchrun nothing is started: every rank makes an Engine with the same
    arguments and calls it with the same requests; rank 0 gets the images.

    Calls from several threads wait for one another and are answered in the order in which they came.
    A request that fails leaves the engine usable. Where all ranks outlived it they go on with the next request; where a
    rank died or was silent beyond the deadline, all were ended, since the others can no longer be reached, and the next
    request starts them anew. Under torchrun, which started the ranks, a dead rank cannot be replaced.

    Args:
        model: `tiny-sdxl`, `tiny-sd3`, a local folder, a hub id or a .safetensors file; or what `find_model` found.
        devices: Number of ranks. None takes `config.devices`, torchrun's number, or 2.
        config: How the ranks work together.
        device: `cuda` (a GPU for each rank), `cpu` (a core for each rank), or `auto`: CUDA where there is any.
        dtype: `float32`, `float16` or `bfloat16`; None: see `load_pipeline`.
        scheduler: A name from `schedulers.SCHEDULERS`; None keeps the model's own.
        task: `text-to-image`, `image-to-image` or `inpainting`.
        variant: Suffix of the weight files, such as `fp16`.
        model_config: Of a .safetensors file: the folder or hub id of its configuration; see `find_model`.
        loras: `PATH_OR_ID[:SCALE]` each; see `set_loras`.
        controlnets: A folder or a hub id each.
        offload: `none`, or `model` or `sequential` for less memory of each GPU: see `models.offload.OFFLOADS`.
        compile: `none`, or `blocks` or `whole`: the denoiser under `torch.compile`, see `models.compiling.COMPILES`.
        timeout: Seconds without a finished step before a request counts as stuck; a rank waits as long for another.
            None takes `config.timeout`. A step in which a network is compiled counts likewise.
        startup_timeout: Deadline in seconds for all ranks to have loaded the model, whenever they are started.

    Raises:
        UsageError: something does not fit: the model, the number of ranks or of GPUs, a name. No rank was started.
        EngineError: a rank failed to start; all were ended.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | ModelFolder,
        devices: int | None = None,
        config: ParallelConfig | None = None,
        *,
        device: str = "auto",
        dtype: str | None = None,
        scheduler: str | None = None,
        task: str = "text-to-image",
        variant: str | None = None,
        model_config: str | None = None,
        loras: Sequence[str] = (),
        controlnets: Sequence[str] = (),
        offload: str = "none",
        compile: str = "none",
        timeout: float | None = None,
        startup_timeout: float = 600.0,
    ) -> None:
        config = checked_config(config)
        devices = config.devices if devices is None else devices
        placement = find_placement(devices, device, config.simulate)
        if devices is None:
            devices = DEFAULT_RANKS if config.simulate else placement.world
        self.config = replace(config, devices=devices, timeout=config.timeout if timeout is None else timeout)
        check_ranks(self.config, devices)
        check_offload(offload, placement.device_type, compile)
        if dtype is not None:
            require_known("dtype", dtype, DTYPES)
        self.folder = find_model(model, variant, model_config).for_device(placement.device_type)
        if scheduler is not None:
            check_scheduler(scheduler, self.folder.scheduler_config)
        self.device = placement.device_type
        self._is_closed = False
        self._turns = Turns()
        loading: dict[str, Any] = {"loras": find_loras(loras), "controlnets": find_controlnets(controlnets)}
        loading |= {"dtype": dtype, "scheduler": scheduler, "task": task, "variant": variant}
        loading |= {"offload": offload, "compile": compile}
        spec = RankSpec(placement, self.config, self.folder, loading, startup_timeout)
        self._ranks: _Spawned | _Joined = _Joined(spec) if placement.under_torchrun else _Spawned(spec)

    @property
    def is_leader(self) -> bool:
        """Whether this process gets the images: always, but under torchrun only on rank 0."""
        return self._ranks.is_leader

    @property
    def pids(self) -> list[int]:
        """Process ids of the ranks started here that are alive; empty under torchrun."""
        return self._ranks.pids

    def generate(
        self, prompt: Any = None, *, seed: int | None = None, on_step: OnStep | None = None, **arguments: Any
    ) -> Generation:
        """Generate images; waits until earlier calls from other threads have been answered.

        Args:
            prompt: One prompt, or a list of them.
            seed: Of the noise; None draws one, which the result names.
            on_step: Is called in this thread after every denoising step with (done, total). An exception of its own
                ends the request on all ranks and is raised here, as is Ctrl-C.
            arguments: Further arguments of the stock pipeline; on ranks that are processes of their own, callbacks
                must be functions that those can import.

        Raises:
            UsageError: a bad argument, or a call from within `on_step`.
            ValueError: the stock pipeline refuses the request on all ranks alike; the cause holds their traceback.
            EngineError: a rank failed, died or was silent for too long; or the engine was closed.
        """
        call = _call(prompt, seed, arguments)
        self.folder.check_call(call.arguments)
        with self._turns.wait():
            if self._is_closed:
                raise EngineError("this engine was closed; make a new one")
            return self._ranks.generate(call, on_step)

    def set_loras(self, loras: Sequence[str]) -> None:
        """Let the pipeline have these LoRAs and no others from the next request on; waits for its turn.

        Args:
            loras: `PATH_OR_ID[:SCALE]` each: a .safetensors file, a folder that holds one, or a hub id.

        Raises:
            UsageError: one cannot be had, or does not fit; all ranks keep those that they had, or have none where
                those cannot be loaded again, which it says.
            EngineError: a rank failed, died or was silent for too long; or the engine was closed.
        """
        found = find_loras(loras)
        with self._turns.wait():
            if self._is_closed:
                raise EngineError("this engine was closed; make a new one")
            self._ranks.swap(found)

    def drain(self) -> None:
        """Wait until the ranks are done with a request that `on_step` ended: they finish the step that they are in."""
        with self._turns.wait():
            self._ranks.drain()

    def close(self) -> None:
        """End the ranks once the call that is running has been answered; calls after it raise EngineError.

        Raises:
            UsageError: a call from within `on_step`; the engine stays open.
        """
        self._turns.refuse_within()
        self._is_closed = True
        with self._turns.wait():
            self._ranks.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Spawned:
    """Ranks that are processes of ours; those that can no longer work together are replaced by the next request."""

    is_leader = True

    def __init__(self, spec: RankSpec) -> None:
        self._spec = spec
        self._start()

    @property
    def pids(self) -> list[int]:
        return [rank.process.pid for rank in self._group.ranks if rank.is_alive]

    def generate(self, call: Call, on_step: OnStep | None) -> Generation:
        packed = _packed(call.seeded(_draw_seed()))
        with self._usable() as group:
            return group.generate(packed, on_step)

    def swap(self, loras: tuple[Lora, ...]) -> None:
        with self._usable() as group:
            group.swap(pack(Swap(loras)))
        # Should the ranks have to be started again.
        self._spec = replace(self._spec, loading=self._spec.loading | {"loras": loras})

    @contextlib.contextmanager
    def _usable(self) -> Iterator[RankGroup]:
        """The ranks, started again where one of them is gone."""
        self._group.drain()
        if not self._group.is_usable:
            self.close()
            logger.warning("starting all ranks again: one of them is gone")
            self._start()
        try:
            yield self._group
        finally:
            if not self._group.is_usable:
                self.close()

    def drain(self) -> None:
        self._group.drain()

    def close(self) -> None:
        self._end()

    def _start(self) -> None:
        self._group = RankGroup.start(self._spec)
        # Also runs when this process ends; holds the ranks, not the engine.
        self._end = weakref.finalize(self, self._group.end)


class _Joined:
    """The rank that torchrun started in this process."""

    pids: ClassVar[list[int]] = []

    def __init__(self, spec: RankSpec) -> None:
        from .worker import PipelineRank

        self.is_leader = spec.placement.rank == 0
        with contextlib.ExitStack() as undo, _as_engine_error():
            if spec.placement.join(spec.startup_timeout):
                undo.callback(leave_process_group)
            self._rank = PipelineRank(spec)
            undo.callback(self._rank.close)
            self._undo = undo.pop_all()

    def generate(self, call: Call, on_step: OnStep | None) -> Generation:
        with _as_engine_error():
            # With every request: a rank that has a seed must not leave one waiting that has none.
            seeds = self._rank.parallel.comm.all_gather_object(_draw_seed())
            return self._rank.generate(call.seeded(seeds[0]), on_step if self.is_leader else None)

    def swap(self, loras: tuple[Lora, ...]) -> None:
        with _as_engine_error():
            self._rank.put_loras(loras)

    def drain(self) -> None:
        """Nothing runs here between two calls."""

    def close(self) -> None:
        self._undo.close()


@contextlib.contextmanager
def _as_engine_error() -> Iterator[None]:
    try:
        yield
    except RankError as error:
        raise EngineError(str(error)) from error


def _call(prompt: Any, seed: int | None, arguments: dict[str, Any]) -> Call:
    refused = {"generator": "give seed instead", "return_dict": "the result is always a Generation"}
    for name, remedy in refused.items():
        if name in arguments:
            raise UsageError(f"{name} is not an argument of Engine.generate: {remedy}")
    if seed is not None and not (isinstance(seed, Integral) and int(seed) in SEEDS):  # numpy's too
        raise UsageError(f"seed must be an integer from 0 to 2**64 - 1, got {seed!r}")
    return Call(({} if prompt is None else {"prompt": prompt}) | arguments, None if seed is None else int(seed))


def _draw_seed() -> int:
    return random.SystemRandom().randrange(2**32)


def _packed(call: Call) -> bytes:
    try:
        return pack(call)
    except Exception as error:  # pickle raises what it likes
        raise UsageError(f"an argument cannot travel to the ranks ({error}); callbacks need torchrun") from error
