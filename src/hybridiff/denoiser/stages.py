"""A denoiser that runs in stages: measures its blocks, is cut, runs whole, outer or inner."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from diffusers.hooks import ModelHook
from torch.utils.flop_counter import FlopCounterMode

from .adapters import sd3 as dit
from .adapters import unet
from .blocks import BlockHook, Boundary, Stage, StageDone, StageState, tensors_of
from .call import DenoiserFamily, Evaluation
from .hooks import AttachedHook
from .split import Cut, StagePlan, Unit, UnitCost, plan_cut

_HOOK_NAME = "hybridiff_stage"
_REPEATS = 4
_FAMILIES: dict[str, ModuleType] = {"UNet2DConditionModel": unet, "SD3Transformer2DModel": dit}


class StagedDenoiser:
    """The stages of one network, by hooks on its blocks; the modules themselves stay as they are.

    Args:
        family: The network's family.
        network: The denoiser.

    Attributes:
        units: The pieces that a cut does not divide, in order of execution.
        cuts: The legal cuts.
        plan: The cut in force, None before `cut`.
        shape: Shape of the sample for which the cut was made.
    """

    def __init__(self, family: DenoiserFamily, network: torch.nn.Module) -> None:
        module = _FAMILIES[family.class_name]
        self.units: list[Unit] = module.list_units(network)
        self.cuts: list[Cut] = module.list_cuts(network)
        self._keeps_residual: bool = module.KEEPS_RESIDUAL
        self.plan: StagePlan | None = None
        self.shape: torch.Size | None = None
        self._network = network
        self._state = StageState()
        self._attached: list[AttachedHook] = []

    def measure(self, evaluation: Evaluation, rows: slice | None = None) -> list[StagePlan]:
        """Count the work of every unit, time it in a few evaluations, and plan every legal cut by both.

        Args:
            evaluation: A call with the shapes to be measured.
            rows: The rows of one branch.

        Returns:
            One plan a cut, in the order of `cuts`.
        """
        assert not self._attached, "measured before it is cut"
        device = evaluation.sample.device
        timers = [_TimerHook(device) for _ in self.units]
        hooks = [
            AttachedHook(self._network.get_submodule(unit.name), timer, _HOOK_NAME)
            for unit, timer in zip(self.units, timers, strict=True)
        ]
        try:
            with FlopCounterMode(display=False) as counter:  # the first call also pays for allocations
                for timer in timers:
                    timer.counter = counter
                evaluation.run(rows)
            for timer in timers:
                timer.counter = None
            wholes = [_timed(lambda: evaluation.run(rows), device) for _ in range(_REPEATS)]
        finally:
            for hook in hooks:
                hook.remove()
        # Minima, as other work on the machine can only add time; what is around the units from one same evaluation.
        around = min(
            whole - sum(timer.seconds(repeat) for timer in timers) for repeat, whole in enumerate(wholes, start=1)
        )
        costs = [
            UnitCost(min(timer.seconds(r) for r in range(1, _REPEATS + 1)), timer.bytes, timer.work) for timer in timers
        ]
        work_around = counter.get_total_flops() - sum(timer.work for timer in timers)
        return [plan_cut(cut, self.units, costs, max(0.0, around), work_around) for cut in self.cuts]

    def cut(self, plan: StagePlan, shape: torch.Size) -> None:
        """Put a cut in force, made for samples of a shape."""
        self.uncut()
        self.plan, self.shape = plan, shape
        try:
            for name, hook in self._hooks(plan.cut):
                self._attached.append(AttachedHook(self._network.get_submodule(name), hook, _HOOK_NAME))
        except BaseException:
            self.uncut()
            raise

    def uncut(self) -> None:
        """Remove every hook; nothing is left behind."""
        for hook in reversed(self._attached):
            hook.remove()
        self._attached = []
        self.plan = self.shape = None
        self._state = StageState()

    def run_whole(self, evaluation: Evaluation, rows: slice | None, *, capture: bool) -> torch.Tensor:
        """Evaluate the whole network: (rows, C, H, W).

        Args:
            evaluation: The call.
            rows: The rows to evaluate, None for all.
            capture: Keep both boundaries, to be read by `down` and `up`.
        """
        with self._running(None, evaluation, rows, capturing=capture):
            return evaluation.run(rows)

    def run_outer(
        self,
        evaluation: Evaluation,
        rows: slice,
        *,
        up: Boundary = (),
        exchange: Callable[[Boundary], Boundary] | None = None,
    ) -> torch.Tensor:
        """Evaluate the outer stage alone: (rows, C, H, W). Its boundary is read by `down`.

        Args:
            evaluation: The call.
            rows: The rows to evaluate.
            up: The inner stage's result to go on with.
            exchange: Instead of `up`: hands the fresh boundary over in mid-forward and returns the inner result.
        """
        with self._running(Stage.OUTER, evaluation, rows, up=up, exchange=exchange):
            return evaluation.run(rows)

    def run_inner(self, evaluation: Evaluation, rows: slice, down: Boundary) -> Boundary:
        """Evaluate the inner stage alone.

        Args:
            evaluation: The call.
            rows: The rows to evaluate.
            down: The outer stage's boundary.
        """
        with self._running(Stage.INNER, evaluation, rows, down=down):
            try:
                evaluation.run(rows)
            except StageDone:
                return self._state.up
        raise AssertionError("the inner stage ran past its last block")

    @property
    def down(self) -> Boundary:
        """The last boundary from the outer stage to the inner one."""
        return self._state.down

    @property
    def up(self) -> Boundary:
        """The last boundary from the inner stage back to the outer one."""
        return self._state.up

    def release(self) -> None:
        """Let go of the boundaries, at the end of a call."""
        self._state.down = self._state.up = ()

    def kept(self, down: Boundary, up: Boundary) -> Boundary:
        """What carries over from an inner stage to later steps: its result, or what it adds to its input."""
        if not self._keeps_residual:
            return up
        return tuple(result - given for result, given in zip(up, down, strict=True))

    def restored(self, down: Boundary, kept: Boundary) -> Boundary:
        """The inner stage's result that something kept stands for at a fresh boundary; the inverse of `kept`."""
        if not self._keeps_residual:
            return kept
        return tuple(given + residual for given, residual in zip(down, kept, strict=True))

    @contextmanager
    def _running(
        self,
        stage: Stage | None,
        evaluation: Evaluation,
        rows: slice | None,
        *,
        capturing: bool = False,
        down: Boundary = (),
        up: Boundary = (),
        exchange: Callable[[Boundary], Boundary] | None = None,
    ) -> Iterator[None]:
        state = self._state
        state.stage, state.capturing, state.exchange = stage, capturing, exchange
        state.rows = evaluation.rows if rows is None else rows.stop - rows.start
        state.down, state.up = down, up
        try:
            yield
        finally:  # any other call of the network runs it whole
            state.stage, state.capturing, state.exchange = None, False, None

    def _hooks(self, cut: Cut) -> list[tuple[str, BlockHook]]:
        """The hooks of a cut: one a block that lies in one stage, one a unit in blocks that hold a boundary."""
        stages: dict[str, set[Stage]] = {}
        for i, unit in enumerate(self.units):
            stages.setdefault(unit.block or unit.name, set()).add(self._stage(cut, i))
        at_boundary = {self.units[i].block for i in (cut.entry, cut.exit)}
        hooks: dict[str, BlockHook] = {}
        for i, unit in enumerate(self.units):
            block = unit.block or unit.name
            whole = len(stages[block]) == 1 and unit.block not in at_boundary
            name = block if whole else unit.name
            if name not in hooks:
                hooks[name] = BlockHook(self._state, self._stage(cut, i), i == cut.entry, i == cut.exit)
        return list(hooks.items())

    @staticmethod
    def _stage(cut: Cut, unit: int) -> Stage:
        return Stage.INNER if cut.is_inner(unit) else Stage.OUTER


class _TimerHook(ModelHook):
    """Times a unit in every forward, without waiting for the device in between, and counts its work where asked to."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device
        self._marks: list[tuple[Any, Any]] = []
        self.bytes = self.work = 0
        self.counter: FlopCounterMode | None = None

    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        before = self.counter.get_total_flops() if self.counter is not None else 0
        start = _mark(self._device)
        output = self.fn_ref.original_forward(*args, **kwargs)
        self._marks.append((start, _mark(self._device)))
        if self.counter is not None:
            self.work = self.counter.get_total_flops() - before
        self.bytes = sum(tensor.nbytes for tensor in tensors_of(output))
        return output

    def seconds(self, repeat: int) -> float:
        return _elapsed(*self._marks[repeat])


def _mark(device: torch.device) -> Any:
    if device.type == "cuda":
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event
    return time.perf_counter()


def _elapsed(start: Any, end: Any) -> float:
    seconds: float = start.elapsed_time(end) / 1e3 if isinstance(start, torch.cuda.Event) else end - start
    return seconds


def _timed(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
