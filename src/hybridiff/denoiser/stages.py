"""A denoiser that runs in stages: measures its layers, is split, runs whole or one stage alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from .adapters import DenoiserAdapter
from .attached import AttachedHooks
from .blocks import OUTER, BlockHook, Boundary, StageDone, StageState
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
        self._attached = AttachedHooks()

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
            self._attached = AttachedHooks(
                (self._network.get_submodule(name), hook, _HOOK_NAME) for name, hook in self._hooks(split)
            )
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Remove every hook; nothing is left behind."""
        self._attached.remove()
        self.split = self.made_for = None
        self._state = StageState()

    def relink(self) -> None:
        """Give a split up whose hooks were compiled since: the next run makes it anew, around what is compiled."""
        if self._attached.are_traced:
            self.remove()

    def run_whole(self, evaluation: Evaluation, rows: slice, rank: int = 0) -> torch.Tensor:
        """Evaluate the whole network: (rows, ...); boundaries are kept, to be read by `downs` and `ups`.

        Args:
            evaluation: The call.
            rows: The rows to evaluate.
            rank: Whose forward it is, where ranks differ in shapes: those that have parts of an image.
        """
        with self._running(None, rows, capturing=True, rank=rank):
            return evaluation.run(rows)

    def run_outer(
        self, evaluation: Evaluation, rows: slice, inner: Callable[[Boundary], Boundary], rank: int = 0
    ) -> torch.Tensor:
        """Evaluate the outer stage alone: (rows, ...); its boundary is read by `down`.

        Args:
            evaluation: The call.
            rows: The rows to evaluate.
            inner: Stands in for the inner stages: their result at the fresh boundary.
            rank: See `run_whole`, which has to have run for it.
        """
        with self._running(OUTER, rows, inner=inner, rank=rank):
            return evaluation.run(rows)

    def run_inner(
        self, evaluation: Evaluation, rows: slice, down: Boundary, stage: int = 1, up: Boundary = ()
    ) -> Boundary:
        """Evaluate an inner stage alone; its result. The boundary to the next one is kept, to be read by `downs`.

        Args:
            evaluation: The call.
            rows: The rows to evaluate.
            down: The boundary from the stage around it.
            stage: Which one, counted from the outer stage, which is 0.
            up: The result of the stage within it, where there is one.
        """
        with self._running(stage, rows, down=down, up=up):
            try:
                evaluation.run(rows)
            except StageDone:
                return self._state.ups[stage - 1]
        raise AssertionError("the inner stage ran past its last block")

    @property
    def downs(self) -> dict[int, Boundary]:
        """This thread's last boundaries inwards: number k lies between the stages k and k + 1, from the outer one."""
        return self._state.downs

    @property
    def ups(self) -> dict[int, Boundary]:
        """The last boundaries outwards, numbered alike."""
        return self._state.ups

    @property
    def down(self) -> Boundary:
        """The last boundary from the outer stage inwards."""
        return self.downs.get(OUTER, ())

    @property
    def up(self) -> Boundary:
        """The last boundary back to the outer stage."""
        return self.ups.get(OUTER, ())

    def release(self) -> None:
        """Let go of the boundaries, at the end of a call."""
        self._state.downs, self._state.ups = {}, {}

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
        stage: int | None,
        rows: slice,
        *,
        capturing: bool = False,
        down: Boundary = (),
        up: Boundary = (),
        inner: Callable[[Boundary], Boundary] | None = None,
        rank: int = 0,
    ) -> Iterator[None]:
        state = self._state
        state.rank, state.stage, state.capturing, state.inner = rank, stage, capturing, inner
        state.rows = rows.stop - rows.start
        state.downs, state.ups = ({stage - 1: down}, {stage: up}) if stage else ({}, {})
        try:
            yield
        finally:  # any other call of the network runs it whole
            state.stage, state.capturing, state.inner = None, False, None

    def _hooks(self, split: Split) -> list[tuple[str, BlockHook]]:
        """One hook per block that lies in one stage, one per layer in blocks that hold a boundary."""
        owners = [split.stage_of(i) for i in range(len(self.layers))]
        entries, exits = {point.entry for point in split.points}, {point.exit for point in split.points}
        stages: dict[str, set[int]] = {}
        for layer, owner in zip(self.layers, owners, strict=True):
            stages.setdefault(layer.block or layer.name, set()).add(owner)
        at_boundary = {self.layers[i].block for i in entries | exits}
        hooks: dict[str, BlockHook] = {}
        for i, layer in enumerate(self.layers):
            block = layer.block or layer.name
            whole = len(stages[block]) == 1 and layer.block not in at_boundary
            name = block if whole else layer.name
            if name not in hooks:
                hooks[name] = BlockHook(self._state, owners[i], i in entries, i in exits)
        return list(hooks.items())
