"""`Engine`: parallel generation without torchrun, from a script, a notebook or the command line."""

from __future__ import annotations

import os
import pickle
import random
import weakref
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import Any, ClassVar

from ..config import ParallelConfig, check_ranks
from ..models.loading import ModelFolder, check_dtype, find_model
from ..models.schedulers import check_scheduler
from .errors import EngineError
from .launcher import RankGroup
from .protocol import Generation, RankSpec, Request

__all__ = ["Engine", "EngineError", "Generation"]

DEVICES = ("auto", "cuda", "cpu")

OnStep = Callable[[int, int], None]


class Engine:
    """A model on several ranks, ready for requests.

    The ranks are processes of their own, started here and ended by `close()`, by leaving the `with` block, or with
    this process, however it ends. Under torchrun nothing is started: every rank makes an Engine with the same
    arguments and calls it with the same requests; rank 0 gets the pictures.

    Args:
        model: `tiny-sdxl`, `tiny-sd3`, a local folder or a hub id; or what `find_model` found for one.
        devices: Number of ranks. None takes `config.devices`, torchrun's number, or 2.
        config: How the ranks work together.
        device: `cuda` (one GPU a rank), `cpu` (one core a rank), or `auto`: CUDA where there is any.
        dtype: `float32`, `float16` or `bfloat16`; None: see `load_pipeline`.
        scheduler: A name from `schedulers.SCHEDULERS`; None keeps the model's own.
        task: `text-to-image`, `image-to-image` or `inpainting`.
        variant: Suffix of the weight files, such as `fp16`.
        timeout: Deadline: seconds without a finished step before a request counts as stuck; also every rank's
            deadline for another. None takes `config.timeout`.
        startup_timeout: Deadline in seconds for all ranks to have loaded the model.

    Raises:
        ValueError: something does not fit: the model, the number of ranks or of GPUs, a name. Nothing was started.
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
        timeout: float | None = None,
        startup_timeout: float = 600.0,
    ) -> None:
        self._joined = is_under_torchrun()
        self.config = _complete(config or ParallelConfig(), devices, timeout, self._joined)
        if dtype is not None:
            check_dtype(dtype)
        self.folder = model if isinstance(model, ModelFolder) else find_model(model, variant)
        if scheduler is not None:
            check_scheduler(scheduler, self.folder.scheduler_config)
        assert self.config.devices is not None
        check_ranks(self.config, self.config.devices)
        processes = 1 if self.config.simulate else self.config.devices
        spec = RankSpec(
            rank=0,
            ranks=processes,
            config=self.config,
            model=str(self.folder.path),
            device=choose_device(
                device, int(os.environ.get("LOCAL_WORLD_SIZE", processes)) if self._joined else processes
            ),
            dtype=dtype,
            scheduler=scheduler,
            task=task,
            variant=variant,
            startup_timeout=startup_timeout,
        )
        self.device = spec.device
        self._backend: _Spawned | _Joined = _Joined(spec) if self._joined else _Spawned(spec)

    @property
    def is_leader(self) -> bool:
        """Whether this process gets the pictures: always, but under torchrun only on rank 0."""
        return self._backend.is_leader

    @property
    def pids(self) -> list[int]:
        """Process ids of the ranks that were started here; empty under torchrun and once they have been ended."""
        return self._backend.pids

    def generate(
        self, prompt: Any = None, *, seed: int | None = None, on_step: OnStep | None = None, **arguments: Any
    ) -> Generation:
        """Generate pictures.

        Args:
            prompt: One prompt, or a list of them.
            seed: Of the noise; None draws one, which the result names.
            on_step: Is called after every denoising step with (done, total).
            arguments: Further arguments of the stock pipeline.

        Raises:
            ValueError: a bad argument; the engine stays usable.
            EngineError: a rank failed, died or was silent for too long. All ranks have been ended.
        """
        self.folder.check_call(arguments)
        request = _request(prompt, seed, arguments)
        return self._backend.generate(request, on_step)

    def close(self) -> None:
        """End the ranks."""
        self._backend.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Spawned:
    """Ranks that are processes of ours."""

    is_leader = True

    def __init__(self, spec: RankSpec) -> None:
        self._timeout = spec.config.timeout
        self._group: RankGroup | None = RankGroup(
            [replace(spec, rank=rank, device=_device_of(spec.device, rank)) for rank in range(spec.ranks)]
        )
        # Also runs when this process ends; holds the ranks, not the engine.
        self._end = weakref.finalize(self, self._group.end)
        self._replies(spec.startup_timeout, None, "starting")

    def generate(self, request: Request, on_step: OnStep | None) -> Generation:
        group = self._open_group()
        group.send(request)
        # The ranks' own deadline comes first: they know more about what they waited for.
        generation = self._replies(self._timeout + 2.0, on_step, "generating")[0]
        assert isinstance(generation, Generation)
        return generation

    @property
    def pids(self) -> list[int]:
        return [rank.process.pid for rank in self._group.ranks] if self._group is not None else []

    def close(self) -> None:
        if self._group is not None:
            self._group.stop()
            self._forget()

    def _replies(self, silence: float, on_step: OnStep | None, doing: str) -> list[Any]:
        group = self._open_group()
        try:
            return group.replies(silence, on_step, doing)
        except ValueError:
            if doing == "starting":
                self.close()
            raise
        except BaseException:  # Ctrl-C too
            self._end()
            self._forget()
            raise

    def _open_group(self) -> RankGroup:
        if self._group is None:
            raise EngineError("the ranks of this engine have been ended; make a new Engine")
        return self._group

    def _forget(self) -> None:
        self._end.detach()
        self._group = None


class _Joined:
    """The rank that torchrun started in this process."""

    pids: ClassVar[list[int]] = []

    def __init__(self, spec: RankSpec) -> None:
        from .worker import PipelineRank, join_process_group

        rank = int(os.environ["RANK"])
        spec = replace(spec, rank=rank, device=_device_of(spec.device, int(os.environ.get("LOCAL_RANK", rank))))
        self.is_leader = rank == 0
        self._made_group = join_process_group(spec, "env://")
        self._rank = PipelineRank(spec)

    def generate(self, request: Request, on_step: OnStep | None) -> Generation:
        from ..distributed.comm import RankError

        try:
            return self._rank.generate(request, on_step if self.is_leader else None)
        except RankError as error:
            raise EngineError(str(error)) from error

    def close(self) -> None:
        from .worker import leave_process_group

        self._rank.close()
        if self._made_group:
            leave_process_group()


def is_under_torchrun() -> bool:
    """Whether this process is a rank that torchrun, or something like it, started."""
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))


def choose_device(device: str, ranks: int) -> str:
    """`cuda` or `cpu` for this many ranks.

    Raises:
        ValueError: an unknown name, or fewer GPUs than ranks.
    """
    if device not in DEVICES:
        raise ValueError(f"unknown device {device!r}; choose one of {', '.join(DEVICES)}")
    if device == "cpu":
        return "cpu"
    import torch

    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto" and found == 0:
        return "cpu"
    if found < ranks:
        fewer = f"--devices {found} or " if found else ""
        raise ValueError(
            f"{ranks} rank{'s' * (ranks > 1)} requested, {found} GPU{'s' * (found != 1)} found; use {fewer}--device cpu"
        )
    return "cuda"


def _device_of(device: str, local_rank: int) -> str:
    return device if device == "cpu" else f"{device}:{local_rank}"


def _complete(config: ParallelConfig, devices: int | None, timeout: float | None, joined: bool) -> ParallelConfig:
    devices = config.devices if devices is None else devices
    world = int(os.environ["WORLD_SIZE"]) if joined else None
    if devices is None:
        devices = world or 2
    if world is not None and devices != world and not config.simulate:
        raise ValueError(f"{devices} ranks requested, torchrun started {world}; use --devices {world}")
    return replace(config, devices=devices, timeout=config.timeout if timeout is None else timeout)


def _request(prompt: Any, seed: int | None, arguments: dict[str, Any]) -> Request:
    refused = {"generator": "give seed instead", "return_dict": "the result is always a Generation"}
    for name, remedy in refused.items():
        if name in arguments:
            raise ValueError(f"{name} is not an argument of Engine.generate: {remedy}")
    if seed is None:
        seed = random.SystemRandom().randrange(2**32)
    if not isinstance(seed, int) or not 0 <= seed < 2**64:
        raise ValueError(f"seed must be a whole number from 0 to 2**64 - 1, got {seed!r}")
    request = Request({"prompt": prompt} | arguments, seed)
    try:
        pickle.dumps(request)
    except Exception as error:  # pickle raises what it likes
        raise ValueError(f"an argument cannot travel to the ranks ({error}); callbacks need torchrun") from error
    return request
