"""One call of a denoiser: find, slice and join the batch in its arguments and its output."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput


@dataclass(frozen=True)
class DenoiserFamily:
    """What is special about the calls of one family of networks.

    Attributes:
        class_name: The network's class in diffusers.
        attribute: Where a pipeline keeps it.
        sample: Name of the argument that holds the noisy sample, (rows, C, H, W).
        output: The output class when `return_dict` is true.
    """

    class_name: str
    attribute: str
    sample: str
    output: Callable[..., Any]


FAMILIES = (
    DenoiserFamily("UNet2DConditionModel", "unet", "sample", UNet2DConditionOutput),
    DenoiserFamily("SD3Transformer2DModel", "transformer", "hidden_states", Transformer2DModelOutput),
)


@dataclass(frozen=True)
class Evaluation:
    """One denoiser call, its arguments by name.

    Attributes:
        family: The family of the network.
        forward: The network's own forward.
        arguments: Arguments by name.
        branches: Guidance branches that lie one after the other along dim 0: 2 (unconditional, conditional) or 1.
        channels: Channels of the prediction.
    """

    family: DenoiserFamily
    forward: Callable[..., Any]
    arguments: dict[str, Any]
    branches: int
    channels: int

    @property
    def sample(self) -> torch.Tensor:
        """The noisy sample, (rows, C, H, W)."""
        sample = self.arguments[self.family.sample]
        assert isinstance(sample, torch.Tensor)
        return sample

    @property
    def rows(self) -> int:
        """Samples in the call, all branches together."""
        return self.sample.shape[0]

    @property
    def timestep(self) -> float:
        """Timestep of the call; reading it waits for the device."""
        return float(torch.as_tensor(self.arguments["timestep"]).flatten()[0])

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of the prediction of one row, (C, H, W)."""
        return (self.channels, *self.sample.shape[2:])

    def run(self, rows: slice | None = None) -> torch.Tensor:
        """Evaluate the network, for some of the rows or all of them: (rows, C, H, W)."""
        arguments = self.arguments if rows is None else take_rows(self.arguments, self.rows, rows)
        prediction = self.forward(**{**arguments, "return_dict": False})[0]
        assert isinstance(prediction, torch.Tensor)
        return prediction

    def wrap(self, prediction: torch.Tensor) -> Any:
        """The prediction in the form in which the network returns its output to this call."""
        if self.arguments.get("return_dict", True):
            return self.family.output(sample=prediction)
        return (prediction,)


def bind_arguments(forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a call by name, as the signature of `forward` gives them."""
    bound = inspect.signature(forward).bind(*args, **kwargs)
    return dict(bound.arguments)


def take_rows(value: Any, rows: int, wanted: slice) -> Any:
    """Cut a batch out of an argument: every tensor with `rows` rows, however deep in dicts, lists and tuples.

    Both families put the batch on dim 0 of every per-sample tensor; what has another length (a 0-d timestep, one
    mask for all) serves every row.
    """
    if isinstance(value, torch.Tensor):
        return value[wanted] if value.ndim and value.shape[0] == rows else value
    if isinstance(value, dict):
        return {key: take_rows(item, rows, wanted) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(take_rows(item, rows, wanted) for item in value)
    return value


def find_denoiser(pipe: Any) -> tuple[DenoiserFamily, torch.nn.Module]:
    """The network that a pipeline calls at every step.

    Raises:
        ValueError: the pipeline has none, or one of a family whose calls are not known.
    """
    for attribute in ("unet", "transformer"):
        module = getattr(pipe, attribute, None)
        if module is None:
            continue
        network = getattr(module, "_orig_mod", module)  # torch.compile wraps the network
        for family in FAMILIES:
            if family.attribute == attribute and type(network).__name__ == family.class_name:
                return family, network
        known = ", ".join(family.class_name for family in FAMILIES)
        raise ValueError(f"{type(pipe).__name__} denoises with {type(network).__name__}; supported: {known}")
    raise ValueError(f"{type(pipe).__name__} has no denoiser: neither a unet nor a transformer")
