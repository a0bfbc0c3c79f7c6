"""Encoders of text and images that one rank has and evaluates for all."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from diffusers.hooks import ModelHook

from ..denoiser.adapters.base import execution_device
from ..denoiser.attached import AttachedHook
from ..distributed.comm import Comm
from ..distributed.nested import Outline
from ..models.lazy import NAMES, is_unread

Meet = Callable[[str, Any], list[Any] | None]
"""Hears what all ranks have to say outside of the denoising steps (`Run.meet`); None within them."""

_HOOK_NAME = "hybridiff encoder"


class SharedEncoders:
    """Has the leader evaluate those encoders of which some rank has no weights, and gives all ranks what they say.

    Args:
        pipe: The pipeline.
        comm: The ranks.
        names: Of the encoders.
    """

    def __init__(self, pipe: Any, comm: Comm, names: list[str]) -> None:
        self._pipe, self._comm, self._names = pipe, comm, names

    @classmethod
    def agree(cls, pipe: Any, comm: Comm) -> SharedEncoders:
        """Find out which encoders some rank has no weights of; to be called on all of them."""
        parts = getattr(pipe, "components", {})
        unread = [name for name, part in parts.items() if name.startswith(NAMES) and is_unread(part)]
        is_alone = len(comm.local_ranks) == comm.size
        everyones = [] if is_alone else comm.all_gather_object(unread)
        return cls(pipe, comm, sorted({name for names in everyones for name in names}))

    @contextlib.contextmanager
    def together(self, meet: Meet) -> Iterator[None]:
        """What has to be around the call of a pipeline; afterwards the encoders are as before."""
        with contextlib.ExitStack() as stack:
            for name in self._names:
                if (encoder := getattr(self._pipe, name, None)) is not None:
                    hook = _LeaderHook(name, self._comm, meet, execution_device(self._pipe))
                    stack.callback(AttachedHook(encoder, hook, _HOOK_NAME).remove)
            yield


class _LeaderHook(ModelHook):
    """Around an encoder: the leader's output on every rank.

    Args:
        name: Of the encoder.
        comm: The ranks.
        meet: See `SharedEncoders.together`.
        device: Where this rank's networks run.
    """

    def __init__(self, name: str, comm: Comm, meet: Meet, device: torch.device) -> None:
        super().__init__()
        self._name, self._comm, self._meet, self._device = name, comm, meet, device

    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Replaces the encoder's forward (see `diffusers.hooks.ModelHook`)."""
        forward = self.fn_ref.original_forward
        if kwargs.get("past_key_values") is not None:  # it writes text, with a cache that stays where it is
            return forward(*args, **kwargs)
        output = forward(*args, **kwargs) if self._comm.is_leader else None
        outline = Outline(output)
        told = self._meet(f"hear the {self._name}", outline)
        if told is None:
            return output if self._comm.is_leader else forward(*args, **kwargs)
        if self._comm.is_leader:
            message = outline.pack(self._device)
        else:
            message = torch.empty(told[0].size, dtype=torch.uint8, device=self._device)
        self._comm.broadcast({0: {self._comm.rank: message}})
        return output if self._comm.is_leader else told[0].unpack(message)
