"""A denoiser that runs in stages: measures its layers, is split, runs whole, outer or inner."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from .adapters import DenoiserAdapter
from .attached import AttachedHook
from .blocks import BlockHook, Boundary, Stage, StageDone, StageState
from .evaluation import Evaluation
from .layers import Layer, NetworkCost, measure_layers
from .split import Split, SplitPoint, make_split

_HOOK_NAME = "hybridiff_stage"


class StagedDenoiser:
    """The stages of one network, by hooks on its blocks; the modules themselves stay as they are.

    Args:
        adapter: What is known of the network's family.
        network: The denoiser.

    Attributes:
        layers: The pieces that a split does not divide, in order of execution.
        split_points: The legal ones.
        split: The split in force, None before `apply`.
        made_for: What it was made for: the kind of steps, and the shape of the sample.
        costs: What layers cost at shapes of the sample, for those who split it anew at each run.
    """

    def __init__(self, adapter: DenoiserAdapter, network: torch.nn.Module) -> None:
        self.layers: list[Layer] = adapter.layers(network)
        self.split_points: list[SplitPoint] = adapter.split_points(network)
        self.split: Split | None = None
        self.made_for: object = None
        self.costs: dict[torch.Size, NetworkCost] = {}
        self._keeps_residual = adapter.keeps_residual
        self._network = network
        self._state = StageState()
        self._attached: list[AttachedHook] = []

    def measure(self, evaluation: Evaluation, rows: slice | None = None) -> list[Split]:
        """Measure every layer in a few evaluations, and split at every legal point by that.

        Args:
            evaluation: A call with the shapes to be measured.
            rows: The rows of one branch.

        Returns:
            One split per split point, in their order.
        """
        cost = self.cost(evaluation, rows)
        return [make_split(point, self.layers, cost) for point in self.split_points]

    def cost(self, evaluation: Evaluation, rows: slice | None = None) -> NetworkCost:
        """What each layer costs; arguments as those of `measure`."""
        assert not self._attached, "measured before it is split"
        device = evaluation.sample.device
        return measure_layers(self._network, self.layers, lambda: evaluation.run(rows), device)

    def apply(self, split: Split, made_for: object = None) -> None:
        """Put a split in force."""
        self.remove()
        self.split, self.made_for = split, made_for
        try:
            for name, hook in self._hooks(split.point):
                self._attached.append(AttachedHook(self._network.get_submodule(name), hook, _HOOK_NAME))
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Remove every hook; nothing is left behind."""
        for hook in reversed(self._attached):
            hook.remove()
        self._attached = []
        self.split = self.made_for = None
        self._state = StageState()

    def run_whole(self, evaluation: Evaluation, rows: slice) -> torch.Tensor:
        """Evaluate the whole network: (rows, ...); both boundaries are kept, to be read by `down` and `up`."""
        with self._running(None, rows, capturing=True):
            return evaluation.run(rows)

    def run_outer(self, evaluation: Evaluation, rows: slice, inner: Callable[[Boundary], Boundary]) -> torch.Tensor:
        """Evaluate the outer stage alone: (rows, ...); its boundary is read by `down`.

        Args:
            evaluation: The call.
            rows: The rows to evaluate.
            inner: Stands in for the inner stage: its result at the fresh boundary.
        """
        with self._running(Stage.OUTER, rows, inner=inner):
            return evaluation.run(rows)

    def run_inner(self, evaluation: Evaluation, rows: slice, down: Boundary) -> Boundary:
        """Evaluate the inner stage alone, on the outer stage's boundary; its result."""
        with self._running(Stage.INNER, rows, down=down):
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

    def feature(self, down: Boundary, up: Boundary) -> Boundary:
        """What carries over from an inner stage to later steps: its result, or what it adds to its input."""
        if not self._keeps_residual:
            return up
        return tuple(result - given for result, given in zip(up, down, strict=True))

    def result(self, down: Boundary, feature: Boundary) -> Boundary:
        """The inner stage's result that a feature stands for at a fresh boundary; the inverse of `feature`."""
        if not self._keeps_residual:
            return feature
        return tuple(given + residual for given, residual in zip(down, feature, strict=True))

    @contextmanager
    def _running(
        self,
        stage: Stage | None,
        rows: slice,
        *,
        capturing: bool = False,
        down: Boundary = (),
        inner: Callable[[Boundary], Boundary] | None = None,
    ) -> Iterator[None]:
        state = self._state
        state.stage, state.capturing, state.inner = stage, capturing, inner
        state.rows = rows.stop - rows.start
        state.down, state.up = down, ()
        try:
            yield
        finally:  # any other call of the network runs it whole
            state.stage, state.capturing, state.inner = None, False, None

    def _hooks(self, point: SplitPoint) -> list[tuple[str, BlockHook]]:
        """One hook per block that lies in one stage, one per layer in blocks that hold a boundary."""
        stages: dict[str, set[Stage]] = {}
        for i, layer in enumerate(self.layers):
            stages.setdefault(layer.block or layer.name, set()).add(_stage(point, i))
        at_boundary = {self.layers[i].block for i in (point.entry, point.exit)}
        hooks: dict[str, BlockHook] = {}
        for i, layer in enumerate(self.layers):
            block = layer.block or layer.name
            whole = len(stages[block]) == 1 and layer.block not in at_boundary
            name = block if whole else layer.name
            if name not in hooks:
                hooks[name] = BlockHook(self._state, _stage(point, i), i == point.entry, i == point.exit)
        return list(hooks.items())


def _stage(point: SplitPoint, layer: int) -> Stage:
    return Stage.INNER if point.is_inner(layer) else Stage.OUTER
