"""One call of a denoiser: its arguments by name, the rows of its batch, and its output."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from ..errors import UsageError
from .adapters import DenoiserAdapter
from .deferred import computed
from .signature import signature_of

_SHARED = frozenset({"image_rotary_emb", "freqs_cis", "txt_ids", "img_ids", "img_shapes", "image_ids", "freqs_cis_img"})
"""Arguments that serve every row, though their length may by chance be that of the batch."""

_OF_FRAMES = frozenset({"encoder_hidden_states", "down_block_additional_residuals", "mid_block_additional_residual"})
"""Arguments that may have several lines a sample: one for each frame of a film."""

_ROWS_SECOND = frozenset({"encoder_hidden_states_llama3"})
"""Tensors whose dim 0 is that of layers, and dim 1 the batch."""


@dataclass(frozen=True)
class DenoiserCall:
    """One call of a denoiser, its arguments by name.

    Attributes:
        adapter: What is known of the network's family.
        network: The network.
        forward: Its own forward.
        arguments: Arguments by name.
    """

    adapter: DenoiserAdapter
    network: torch.nn.Module
    forward: Callable[..., Any]
    arguments: dict[str, Any]

    @classmethod
    def bind(
        cls, adapter: DenoiserAdapter, network: torch.nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any
    ) -> DenoiserCall:
        """A call as the pipeline made it."""
        return cls(adapter, network, forward, bind_arguments(forward, args, kwargs))

    @property
    def sample(self) -> torch.Tensor:
        """The noisy sample, (rows, ...); of a list of samples the first one, without dimension of the batch."""
        sample = self._samples[0] if self.is_list else self._samples
        assert isinstance(sample, torch.Tensor)
        return sample

    @property
    def is_list(self) -> bool:
        """Whether samples and predictions come as lists."""
        return isinstance(self._samples, list)

    @property
    def rows(self) -> int:
        """Samples in the call, all its branches together."""
        return len(self._samples)

    @property
    def timestep(self) -> float:
        """Timestep of the call; reading it waits for the device."""
        return float(torch.as_tensor(self.arguments["timestep"]).flatten()[0])

    def run(self, rows: slice | None = None) -> torch.Tensor:
        """Evaluate the network, for some of the rows or all of them: (rows, ...)."""
        is_whole = rows is None or rows == slice(0, self.rows)
        arguments = self.arguments
        if rows is not None and not is_whole:
            arguments = take_argument_rows(arguments, self.rows, rows, self.is_list)
        takes_return_dict = signature_of(self.forward).takes_return_dict
        answered = self.forward(**computed(arguments) | ({"return_dict": False} if takes_return_dict else {}))
        return _prediction(answered, type(self.network).__name__)

    def wrap(self, prediction: torch.Tensor) -> Any:
        """The prediction in the form in which the network returns its output to this call."""
        output = list(prediction.unbind()) if self.is_list else prediction
        if self.arguments.get("return_dict", signature_of(self.forward).takes_return_dict):
            return self.adapter.output(output)
        return (output,)

    @cached_property
    def _samples(self) -> Any:
        name = self.adapter.sample or next(iter(self.arguments))
        return self.arguments[name]


def bind_arguments(forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a call by name, as the signature of `forward` gives them."""
    bound = signature_of(forward).bind(args, kwargs)
    if bound is None:  # which says why
        return dict(inspect.signature(forward).bind(*args, **kwargs).arguments)
    return bound


def take_argument_rows(arguments: Mapping[str, Any], rows: int, wanted: slice, is_list: bool) -> dict[str, Any]:
    """Cut some rows out of the arguments of a call that has so many; `is_list`: its samples come as a list."""
    taken = {
        name: value if name in _SHARED else take_rows(value, rows, wanted, name in _OF_FRAMES, is_list)
        for name, value in arguments.items()
    }
    return taken | {name: arguments[name][:, wanted] for name in _ROWS_SECOND & taken.keys()}


def take_rows(value: Any, rows: int, wanted: slice, has_frames: bool = False, has_lists: bool = False) -> Any:
    """Cut a batch out of an argument: every tensor with `rows` rows, however deep in dicts, lists and tuples.

    Families put the batch on dim 0 of every per-sample tensor; what has another length (a 0-d timestep, one mask for
    all) serves every row.

    Args:
        value: The argument.
        rows: Samples in the call.
        wanted: Which of them to take.
        has_frames: A tensor may have several lines a sample.
        has_lists: A list of as many things is one thing a sample.
    """
    if isinstance(value, torch.Tensor):
        length = value.shape[0] if value.ndim else 0
        lines = length // rows if length == rows or (has_frames and length % rows == 0) else 0
        return value[wanted.start * lines : wanted.stop * lines] if lines else value
    if isinstance(value, dict):
        return {key: take_rows(item, rows, wanted, has_frames, has_lists) for key, item in value.items()}
    if isinstance(value, list) and has_lists and len(value) == rows:
        return value[wanted]
    if isinstance(value, (list, tuple)):
        return type(value)(take_rows(item, rows, wanted, has_frames, has_lists) for item in value)
    return value


def _prediction(answered: Any, name: str) -> torch.Tensor:
    """The one tensor that a network predicts, whatever the form of its answer."""
    if isinstance(answered, torch.Tensor):
        return answered
    predicted = answered[0] if isinstance(answered, tuple) else getattr(answered, "sample", None)
    if isinstance(predicted, list) and len({item.shape for item in predicted}) == 1:
        return torch.stack(predicted)
    others = answered[1:] if isinstance(answered, tuple) else ()
    if not isinstance(predicted, torch.Tensor) or any(isinstance(other, torch.Tensor) for other in others):
        raise UsageError(f"{name} does not predict one tensor at a call: its calls cannot be shared between ranks")
    return predicted
