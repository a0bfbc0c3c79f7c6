"""The pipeline's VAE: pictures that all ranks decode and encode together, by rows."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from diffusers.hooks import ModelHook
from diffusers.models.attention_processor import Attention
from diffusers.models.autoencoders.vae import Decoder, Encoder
from diffusers.models.downsampling import Downsample2D
from diffusers.models.upsampling import Upsample2D
from torch import nn

from ..denoiser.attached import AttachedHook
from ..distributed.comm import Comm
from .encoders import Meet
from .network import RowShards, is_hooked_by_others, is_plain
from .ranks import RankGroups

LEAST_PIXELS = 512 * 512
"""Pictures are shared from so many pixels on: below, ranks wait for messages more than they compute."""

_HOOK_NAME = "hybridiff vae"
_PROCESSORS = ("AttnProcessor2_0", "FusedAttnProcessor2_0")
"""Of attention layers whose keys can be gathered (`AttentionHook`)."""


class SharedVae:
    """Lets ranks decode and encode large pictures together; each has the whole picture then.

    Args:
        pipe: The pipeline.
        comm: The ranks.
        groups: The same, as groups that share rows.
        is_wanted: Ranks may share pictures.
        drops: This rank's output is dropped.

    Attributes:
        is_shared: All ranks come by the VAE in the call that runs, as all know it; otherwise only those whose output is
            wanted do.
    """

    def __init__(self, pipe: Any, comm: Comm, groups: RankGroups, is_wanted: bool, drops: bool) -> None:
        self._pipe, self._comm, self._groups, self._drops = pipe, comm, groups, drops
        self._is_wanted = is_wanted and comm.size > 1
        self.is_shared = False

    def is_known(self) -> bool:
        """Whether this rank could share pictures, as its VAE is at this moment."""
        return self._is_wanted and _is_known(getattr(self._pipe, "vae", None))

    @contextlib.contextmanager
    def together(self, meet: Meet, is_over: Callable[[], bool]) -> Iterator[None]:
        """What has to be around the call of a pipeline; afterwards the VAE is as before.

        Args:
            meet: Hears all ranks before they share a picture.
            is_over: Whether all steps were taken.
        """
        with contextlib.ExitStack() as stack:
            if self.is_shared:
                vae = self._pipe.vae
                for network in (vae.encoder, vae.decoder):
                    drops = is_over if self._drops and network is vae.decoder else lambda: False
                    hook = _TogetherHook(network, self._comm.size, self._groups, meet, drops)
                    stack.callback(hook.restore_layers)
                    stack.callback(AttachedHook(network, hook, _HOOK_NAME).remove)
            yield


class _TogetherHook(ModelHook):
    """Around the encoder or the decoder: ranks evaluate it together where a picture is large.

    Args:
        network: The encoder or the decoder.
        count: Number of ranks.
        groups: The ranks.
        meet: See `SharedVae.together`.
        drops: Whether what this rank makes on its own is dropped.
    """

    def __init__(
        self, network: nn.Module, count: int, groups: RankGroups, meet: Meet, drops: Callable[[], bool]
    ) -> None:
        super().__init__()
        self._unit, self._scale = (2 ** _count(network, kind) for kind in (Downsample2D, Upsample2D))
        self._count, self._groups, self._meet, self._drops = count, groups, meet, drops
        self._shards: RowShards | None = None

    def new_forward(self, module: nn.Module, picture: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Replaces the network's forward (see `diffusers.hooks.ModelHook`)."""
        forward = self.fn_ref.original_forward
        if args or kwargs or not self._is_to_be_shared(picture) or self._meet("share a picture", None) is None:
            return self._nothing(module, picture) if self._drops() else forward(picture, *args, **kwargs)
        if self._shards is None:
            self._shards = RowShards(module, self._unit)
        shards = self._shards
        return self._groups.together(picture.device, lambda group: shards.shared_by(group, forward)(picture))

    def _nothing(self, decoder: Any, latents: torch.Tensor) -> torch.Tensor:
        """A black picture of the right size."""
        rows, columns = (size * self._scale for size in latents.shape[2:])
        return latents.new_zeros(len(latents), decoder.conv_out.out_channels, rows, columns)

    def restore_layers(self) -> None:
        """Take away the hooks inside, which there are once a picture was shared."""
        if self._shards is not None:
            self._shards.remove()

    def _is_to_be_shared(self, picture: torch.Tensor) -> bool:
        """Whether a picture is large, and each rank gets rows of it."""
        rows, columns = picture.shape[2:]
        is_large: bool = rows * columns * self._scale**2 >= LEAST_PIXELS
        return is_large and rows % self._unit == 0 and rows // self._unit >= self._count


def _is_known(vae: Any) -> bool:
    """Whether rows of pictures can be decoded and encoded apart, as the VAE is at this moment."""
    encoder, decoder = getattr(vae, "encoder", None), getattr(vae, "decoder", None)
    if not isinstance(encoder, Encoder) or not isinstance(decoder, Decoder):
        return False
    if getattr(vae, "use_tiling", False) or getattr(vae, "use_slicing", False):
        return False
    is_changed = not vars(vae).keys().isdisjoint({"encode", "decode"})  # compiled, maybe
    return not is_changed and all(map(_is_untouched, (encoder, decoder)))


def _is_untouched(network: Any) -> bool:
    """Whether all layers are such as the hooks know, and nobody else is around them."""
    return (
        is_plain(network)
        and isinstance(network.conv_norm_out, nn.GroupNorm)
        and not any(map(is_hooked_by_others, network.modules()))
        and all(module._compiled_call_impl is None for module in network.modules())
        and all(
            type(module.processor).__name__ in _PROCESSORS
            for module in network.modules()
            if isinstance(module, Attention)
        )
    )


def _count(network: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(module, kind) for module in network.modules())
