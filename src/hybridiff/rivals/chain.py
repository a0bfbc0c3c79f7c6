"""A network cut into stages that run apart, each on what the others made; skip connections may cross."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from diffusers.hooks import ModelHook

from ..denoiser.attached import AttachedHooks
from ..denoiser.blocks import Boundary, StageDone, copies, empty_rows, replace_tensors, shapes_only
from ..denoiser.evaluation import Evaluation
from ..denoiser.layers import Layer, NetworkCost

Outputs = dict[int, Boundary]
"""What layers returned, by their index."""


@dataclass(frozen=True)
class Cut:
    """Which stage each layer belongs to.

    Attributes:
        owners: The stage of each layer; the last stage makes the prediction of what the last layer returns.
        skips: Layers that take in the output of an earlier one beside that of the one before, and which.
    """

    owners: tuple[int, ...]
    skips: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def chain(cls, works: Sequence[int], stages: int, skips: Mapping[int, int]) -> Cut:
        """One stage after the other, so that the largest has as little work as can be.

        Args:
            works: Of each layer.
            stages: How many; at most as many as layers.
            skips: See above.
        """
        ends = _balanced(works, stages)
        return cls(tuple(sum(end <= layer for end in ends) for layer in range(len(works))), skips)

    @classmethod
    def nested(cls, layers: int, entry: int, exit_: int, skips: Mapping[int, int]) -> Cut:
        """Two stages: the layers behind `entry` up to `exit_`, and around them the others."""
        return cls(tuple(int(not entry < layer <= exit_) for layer in range(layers)), skips)

    @cached_property
    def stages(self) -> int:
        """How many there are."""
        return max(self.owners) + 1

    @cached_property
    def ends(self) -> frozenset[int]:
        """The last layer of each stage but the last."""
        return frozenset(max(self.layers_of(stage)) for stage in range(self.stages - 1))

    def layers_of(self, stage: int) -> list[int]:
        """The layers of a stage, in order."""
        return [layer for layer, owner in enumerate(self.owners) if owner == stage]

    def needs(self, stage: int) -> list[int]:
        """Layers of other stages whose outputs the layers of a stage take in, in order."""
        own = self.layers_of(stage)
        taken = {layer - 1 for layer in own if layer} | {self.skips[layer] for layer in own if layer in self.skips}
        if stage == self.stages - 1:
            taken.add(len(self.owners) - 1)  # what makes the prediction of it
        return sorted(layer for layer in taken if self.owners[layer] != stage)

    def shares(self, cost: NetworkCost) -> list[float]:
        """Time of each stage as a share of a whole evaluation; what no layer owns counts in all."""
        times = [cost.other_seconds] * self.stages
        for owner, layer in zip(self.owners, cost.layers, strict=True):
            times[owner] += layer.seconds
        return [time / cost.seconds for time in times]


def _balanced(works: Sequence[int], stages: int) -> list[int]:
    """The layers with which the stages after the first begin, so that the largest is as small as can be."""
    ends = range(len(works) + 1)
    best: list[tuple[float, list[int]]] = [(math.inf, [])] * len(ends)
    best[0] = (0.0, [])
    for stage in range(stages):
        best = [
            min(
                (max(best[start][0], sum(works[start:end])), [*best[start][1], start])
                for start in range(stage, max(end, stage + 1))
            )
            if end > stage
            else (math.inf, [])
            for end in ends
        ]
    return best[-1][1][1:]


@dataclass
class _State:
    """What the hooks of one network share during one forward."""

    cut: Cut
    wanted: frozenset[int]  # layers whose outputs some other stage takes in
    stage: int | None = None  # None runs all of them
    is_learning: bool = False  # outputs show the shapes of stand-ins
    rows: int = 0
    given: Mapping[int, Boundary] = field(default_factory=dict)
    made: Outputs = field(default_factory=dict)


class _LayerHook(ModelHook):
    """Runs a layer, or answers with what another stage made of it, or with something of its shape."""

    def __init__(self, state: _State, layer: int) -> None:
        super().__init__()
        self._state, self._layer = state, layer
        self._shapes: Any = None

    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Replaces the layer's forward (see `diffusers.hooks.ModelHook`)."""
        state, stage = self._state, self._state.stage
        if stage is not None and state.cut.owners[self._layer] != stage:
            return self._skip()
        output = self.fn_ref.original_forward(*args, **kwargs)
        if state.is_learning:
            self._shapes = shapes_only(output)
        if self._layer in state.wanted and (stage is not None or state.is_learning):
            state.made[self._layer] = copies(output)
        if stage is not None and self._layer in state.cut.ends:
            raise StageDone
        return output

    def _skip(self) -> Any:
        stand_in = empty_rows(self._shapes, self._state.rows)
        given = self._state.given.get(self._layer)
        # Adapters add to activations in place, and what is given may serve another stage as well.
        return stand_in if given is None else replace_tensors(stand_in, tuple(tensor.clone() for tensor in given))


class ChainedDenoiser:
    """The stages of one network, by hooks on its layers, until they are removed.

    Args:
        network: The denoiser.
        layers: Its layers.
        cut: How they are shared out.
    """

    def __init__(self, network: torch.nn.Module, layers: Sequence[Layer], cut: Cut) -> None:
        self.cut = cut
        self._state = _State(cut, frozenset(layer for stage in range(cut.stages) for layer in cut.needs(stage)))
        self._attached = AttachedHooks(
            (network.get_submodule(layer.name), _LayerHook(self._state, index), "hybridiff_chain")
            for index, layer in enumerate(layers)
        )

    def remove(self) -> None:
        """Remove every hook; nothing is left behind."""
        self._attached.remove()

    def run_whole(self, evaluation: Evaluation) -> tuple[torch.Tensor, Outputs]:
        """All stages: the prediction, (rows, ...), and all outputs that some stage takes in from another one."""
        with self._running(None, evaluation, {}, is_learning=True) as made:
            return evaluation.run(), made

    def run_stage(
        self, stage: int, evaluation: Evaluation, given: Mapping[int, Boundary]
    ) -> tuple[torch.Tensor | None, Outputs]:
        """One stage; there was a whole evaluation before, which shows the shapes.

        Args:
            stage: Which.
            evaluation: The call.
            given: What it takes in from other stages, by layer.

        Returns:
            The prediction, of the last stage only, and what other stages take in.
        """
        with self._running(stage, evaluation, given) as made:
            try:
                return evaluation.run(), made
            except StageDone:
                return None, made

    @contextmanager
    def _running(
        self, stage: int | None, evaluation: Evaluation, given: Mapping[int, Boundary], is_learning: bool = False
    ) -> Iterator[Outputs]:
        state = self._state
        state.stage, state.is_learning, state.rows = stage, is_learning, evaluation.rows
        state.given, state.made = given, {}
        try:
            yield state.made
        finally:  # any other call of the network runs it whole
            state.stage, state.is_learning, state.given, state.made = None, False, {}, {}


def at_timestep(evaluation: Evaluation, timestep: torch.Tensor) -> Evaluation:
    """The same call, conditioned on another timestep (0-d)."""
    own = torch.as_tensor(evaluation.calls[0].arguments["timestep"])
    return with_arguments(evaluation, {"timestep": timestep.to(own).expand(own.shape)})


def with_arguments(evaluation: Evaluation, changed: Mapping[str, Any]) -> Evaluation:
    """The same single call, with some arguments changed."""
    call = evaluation.calls[0]
    return replace(evaluation, calls=(replace(call, arguments={**call.arguments, **changed}),))
