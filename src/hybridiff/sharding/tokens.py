"""Transformers by tokens: where their streams are cut, and where the parts come together again."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.hooks import ModelHook
from torch import nn

from .group import ShardGroup
from .place import PartTensor, current_group


@dataclass(frozen=True)
class Cut:
    """That a tensor is cut along a dimension.

    Attributes:
        dim: The dimension.
        ndim: Dimensions that the tensor must have to be cut; None cuts any.
    """

    dim: int
    ndim: int | None = None

    def part(self, value: Any, group: ShardGroup) -> Any:
        """This rank's part of a tensor, or of each in a list; of anything else the thing itself."""
        if isinstance(value, (list, tuple)):
            return type(value)(self.part(item, group) for item in value)
        if isinstance(value, PartTensor):
            return value.as_subclass(torch.Tensor)
        return group.part(value, self.dim) if self.fits(value) else value

    def fits(self, value: Any) -> bool:
        """Whether it is a tensor that is cut."""
        return isinstance(value, torch.Tensor) and self.ndim in (None, value.ndim)


@dataclass(frozen=True)
class ModuleCuts:
    """What is cut, and put together again, around one module.

    Attributes:
        arguments: By name.
        outputs: By place in the output.
        joined: Dimension along which the parts of the output come together; None where they stay apart.
    """

    arguments: Mapping[str, Cut] = field(default_factory=dict)
    outputs: Mapping[int, Cut] = field(default_factory=dict)
    joined: int | None = None

    def cut_arguments(self, arguments: Mapping[str, Any], group: ShardGroup) -> dict[str, Any]:
        """A rank's part of the arguments of a call, by name."""
        return {
            name: self.arguments[name].part(value, group) if name in self.arguments else value
            for name, value in arguments.items()
        }

    def and_also(self, other: ModuleCuts) -> ModuleCuts:
        """What both say of one module."""
        joined = self.joined if other.joined is None else other.joined
        return ModuleCuts({**self.arguments, **other.arguments}, {**self.outputs, **other.outputs}, joined)

    def cut_outputs(self, output: Any, group: ShardGroup) -> Any:
        """A rank's part of an output."""
        if not self.outputs:
            return output
        if isinstance(output, torch.Tensor):
            return self.outputs[0].part(output, group)
        cut = [
            self.outputs[place].part(value, group) if place in self.outputs else value
            for place, value in enumerate(output)
        ]
        return tuple(cut)


class TokensHook(ModelHook):
    """Around a module at which streams of tokens are cut or come together.

    Args:
        name: Of the module.
        cuts: What happens there.
    """

    def __init__(self, name: str, cuts: ModuleCuts) -> None:
        super().__init__()
        self._name, self._cuts = name, cuts

    def initialize_hook(self, module: nn.Module) -> nn.Module:
        self._signature = inspect.signature(getattr(module, "_orig_mod", module).forward)
        return module

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Replaces the module's forward (see `diffusers.hooks.ModelHook`)."""
        group, forward = current_group(), self.fn_ref.original_forward
        if group is None:
            return forward(*args, **kwargs)
        if self._cuts.arguments:
            bound = self._signature.bind(*args, **kwargs)
            bound.arguments.update(self._cuts.cut_arguments(bound.arguments, group))
            args, kwargs = bound.args, bound.kwargs
        output = self._cuts.cut_outputs(forward(*args, **kwargs), group)
        return output if self._cuts.joined is None else group.join(self._name, output, self._cuts.joined)


def known_cuts(network: nn.Module) -> dict[str, ModuleCuts] | None:
    """Where the streams of a transformer are cut, by name of module, "" being the network; None where not known."""
    name, plan = type(network).__name__, getattr(network, "_cp_plan", None)
    if name in _OWN:
        return _OWN[name]
    if plan is None:
        return None
    cuts = _read_plan(network, plan)
    cuts[""] = cuts.get("", ModuleCuts()).and_also(ModuleCuts(_CONTROLS | _FURTHER.get(name, {})))
    return cuts


_CONTROLS = {
    "controlnet_block_samples": Cut(1, 3),
    "controlnet_single_block_samples": Cut(1, 3),
    "block_controlnet_hidden_states": Cut(1, 3),
}
"""What a ControlNet adds to the stream of the picture; no plan of diffusers names it."""

_FURTHER = {"LTXVideoTransformer3DModel": {"timestep": Cut(1, 2)}}
"""What else the plan of a family leaves out: timesteps of each token."""

_OWN = {
    "SD3Transformer2DModel": {
        "": ModuleCuts({"encoder_hidden_states": Cut(1, 3)} | _CONTROLS),
        "pos_embed": ModuleCuts(outputs={0: Cut(1, 3)}),
        "proj_out": ModuleCuts(joined=1),
    },
}
"""Families for which diffusers has no plan of its own."""


def _read_plan(network: nn.Module, plan: Mapping[str, Any]) -> dict[str, ModuleCuts]:
    """The plan by which diffusers cuts a family itself (`ContextParallelModelPlan`)."""
    cuts: dict[str, ModuleCuts] = {}
    for pattern, entry in plan.items():
        for name in _matching(network, pattern):
            cuts[name] = cuts.get(name, ModuleCuts()).and_also(_read_entry(entry))
    return cuts


def _read_entry(entry: Any) -> ModuleCuts:
    if not isinstance(entry, Mapping):
        return ModuleCuts(joined=entry.gather_dim)
    cuts = {key: Cut(value.split_dim, value.expected_dims) for key, value in entry.items()}
    return ModuleCuts(
        {key: cut for key, cut in cuts.items() if isinstance(key, str)},
        {key: cut for key, cut in cuts.items() if isinstance(key, int)},
    )


def _matching(network: nn.Module, pattern: str) -> list[str]:
    """The modules that a name with stars stands for."""
    return [name for name, _ in network.named_modules() if _fits(name.split("."), pattern.split("."))]


def _fits(name: list[str], pattern: list[str]) -> bool:
    return len(name) == len(pattern) and all(wanted in ("*", part) for part, wanted in zip(name, pattern, strict=True))
