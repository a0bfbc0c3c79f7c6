"""One call of a denoiser: its arguments by name, the rows of its batch, and its output."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .adapters import DenoiserAdapter


@dataclass(frozen=True)
class Evaluation:
    """One denoiser call, its arguments by name.

    Attributes:
        adapter: What is known of the network's family.
        forward: The network's own forward.
        arguments: Arguments by name.
        branches: Guidance branches that lie one after the other along dim 0: 2 (unconditional, conditional) or 1.
        channels: Channels of the prediction.
    """

    adapter: DenoiserAdapter
    forward: Callable[..., Any]
    arguments: dict[str, Any]
    branches: int
    channels: int

    @property
    def sample(self) -> torch.Tensor:
        """The noisy sample, (rows, C, H, W)."""
        sample = self.arguments[self.adapter.sample]
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
            return self.adapter.output(prediction)
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
