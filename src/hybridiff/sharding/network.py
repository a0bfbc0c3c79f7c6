"""A network that ranks evaluate together: how it is cut, and its hooks."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from diffusers.hooks import ModelHook
from diffusers.models.downsampling import Downsample2D, KDownsample2D
from diffusers.models.upsampling import KUpsample2D
from torch import nn

from ..denoiser.attached import AttachedHooks, hooks_of
from ..denoiser.signature import signature_of
from ..denoiser.through import compiled_blocks
from ..distributed.wires import uninterrupted
from .attention import ATTENTIONS, AttentionHook
from .group import ShardGroup
from .pairs import normalized_convolutions
from .place import PartTensor, in_parts
from .rows import ConvolutionHook, DownsampleHook, GroupNormHook, RowsHook, rows_of_part
from .tokens import ModuleCuts, TokensHook, known_cuts
from .traced import PlaceHook, TracedAttention
from .whole import needs_whole_picture

_OURS = "hybridiff"
"""What names of our hooks begin with."""
_HOOK_NAME = f"{_OURS} shards"

Forward = Callable[..., Any]
_Hook = tuple[nn.Module, Any]


class ShardedNetwork(ABC):
    """A network with hooks that let ranks evaluate it together; without a group it runs as ever.

    Args:
        network: The network.

    Attributes:
        why_whole: Why it cannot be cut, and so has no hooks; empty where it can.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self._blocks = dict(compiled_blocks(network))
        self._traced: list[TracedAttention] = []
        self._attached = AttachedHooks()
        around, within = self._divided()
        hooked = {module for module, _ in around}
        self._exposed = [block for block in self._blocks.values() if block in hooked]
        self._modules = set(network.modules())
        self._rows = [module for module, hook in around if isinstance(hook, RowsHook)]
        self.why_whole = _why_whole(network, within) or _why_not_by_rows(network, self._rows)
        if not self.why_whole:
            self._traced = [TracedAttention(layer, hook.text_is_cut) for layer, hook in within]
            self._attached = AttachedHooks(
                (module, hook, f"{_HOOK_NAME} {type(hook).__name__}") for module, hook in around
            )

    def most_parts(self, arguments: Mapping[str, Any]) -> int:
        """Into how many parts a call can be cut."""
        return 1 if needs_whole_picture(self.network, arguments) else self._most_parts(arguments)

    @abstractmethod
    def _most_parts(self, arguments: Mapping[str, Any]) -> int:
        """The same where nothing looks at the whole picture."""

    @abstractmethod
    def run(self, group: ShardGroup, forward: Forward, arguments: dict[str, Any]) -> Any:
        """What a rank has to do of a call.

        Args:
            group: The ranks.
            forward: The network's forward, hooks on inner modules included.
            arguments: Of the call, by name, whole.

        Returns:
            The output of the whole network.
        """

    def shared_by(self, group: ShardGroup, forward: Forward) -> Forward:
        """The network's forward for a rank of a group; the same arguments, the same answer."""

        @functools.wraps(forward)
        def shared(*args: Any, **kwargs: Any) -> Any:
            arguments = signature_of(forward).bind(args, kwargs) or kwargs
            group.begin((self, tuple((name, _form(value)) for name, value in arguments.items())))
            # Who left in the middle would take the connections along.
            with uninterrupted(), in_parts(group):
                return self.run(group, forward, arguments)

        return shared

    @property
    def is_outdated(self) -> bool:
        """Whether layers came or went since, as with a LoRA, others hooked some that ours pass by, or compiled some."""
        is_others = bool(_why_not_by_rows(self.network, self._rows)) and not self.why_whole
        if is_others or set(self.network.modules()) != self._modules:
            return True
        is_again = any(block._compiled_call_impl is not None for block in self._exposed)
        return is_again or dict(compiled_blocks(self.network)) != self._blocks

    def remove(self) -> None:
        """Restore the network."""
        self._attached.remove()
        for traced in self._traced:
            traced.remove()
        self._traced = []

    def _divided(self) -> tuple[list[_Hook], list[_Hook]]:
        """Hooks around compiled blocks or elsewhere, and those within compiled blocks."""
        inside = {module for block in self._blocks.values() for module in block.modules()}
        around: list[_Hook] = []
        within: list[_Hook] = []
        for module, hook in self._hooks():
            is_within = module in inside and (isinstance(hook, AttentionHook) or module not in self._blocks.values())
            if module is not self.network:
                (within if is_within else around).append((module, hook))
        layers = {module for module, _ in within}
        places = ((block, PlaceHook(name)) for name, block in self._blocks.items() if layers & set(block.modules()))
        return [*places, *around], within

    @abstractmethod
    def _hooks(self) -> Iterator[tuple[nn.Module, ModelHook]]:
        """A hook for each module that needs one."""

    def _attention_hooks(self, text_is_cut: bool = False) -> Iterator[tuple[nn.Module, ModelHook]]:
        for name, module in self.network.named_modules():
            if isinstance(module, ATTENTIONS):
                yield module, AttentionHook(name, text_is_cut)


class RowShards(ShardedNetwork):
    """A network of convolutions, by rows of the picture: U-Nets, and decoders and encoders of VAEs.

    Args:
        network: The network.
        unit: Parts begin at multiples of so many rows, as the network halves its rows on the way.
    """

    pictures = frozenset(
        {"down_block_additional_residuals", "mid_block_additional_residual", "down_intrablock_additional_residuals"}
    )
    """Arguments that are pictures too, at some scale: features that others add to a U-Net."""

    def __init__(self, network: nn.Module, unit: int) -> None:
        super().__init__(network)
        self._unit = unit

    def _most_parts(self, arguments: Mapping[str, Any]) -> int:
        return max(1, int(self._picture(arguments).shape[2]) // self._unit)

    def run(self, group: ShardGroup, forward: Forward, arguments: dict[str, Any]) -> Any:
        return _joined(forward(**self._part(group, arguments)), lambda output: group.join("output", output, 2))

    def _part(self, group: ShardGroup, arguments: dict[str, Any]) -> dict[str, Any]:
        rows = int(self._picture(arguments).shape[2])
        own = rows_of_part(rows, self._unit, group)
        part = {name: _rows_of(value, rows, own, name in self.pictures) for name, value in arguments.items()}
        name = next(iter(arguments))
        return part | {name: arguments[name][:, :, own]}

    def _picture(self, arguments: Mapping[str, Any]) -> torch.Tensor:
        picture: torch.Tensor = next(iter(arguments.values()))
        return picture

    def _hooks(self) -> Iterator[tuple[nn.Module, ModelHook]]:
        inside, pairs = set(), normalized_convolutions(self.network)
        extended = set(pairs.values())
        for name, module in self.network.named_modules():
            if isinstance(module, Downsample2D) and module.use_conv and module.padding == 0:
                inside.add(module.conv)
                yield module, DownsampleHook()
            elif isinstance(module, nn.Conv2d) and module.kernel_size[0] > 1 and module not in inside:
                yield module, ConvolutionHook(module in extended)
            elif isinstance(module, nn.GroupNorm):
                yield module, GroupNormHook(name, pairs[module].kernel_size[0] // 2 if module in pairs else 0)
        yield from self._attention_hooks()


class TokenShards(ShardedNetwork):
    """A transformer, by tokens of all its streams.

    Args:
        network: The network.
        cuts: Where the streams are cut and come together, by name of module.
    """

    def __init__(self, network: nn.Module, cuts: Mapping[str, ModuleCuts]) -> None:
        self._cuts = cuts
        super().__init__(network)

    def _most_parts(self, arguments: Mapping[str, Any]) -> int:
        # Networks reshape streams in ways that do not work with an empty part.
        cuts = [(name, cut) for cuts in self._cuts.values() for name, cut in cuts.arguments.items()]
        lengths = [arguments[name].shape[cut.dim] for name, cut in cuts if cut.fits(arguments.get(name))]
        return min(lengths, default=_MANY)

    def run(self, group: ShardGroup, forward: Forward, arguments: dict[str, Any]) -> Any:
        whole = self._cuts.get("", ModuleCuts())
        return forward(**whole.cut_arguments(arguments, group))

    def _hooks(self) -> Iterator[tuple[nn.Module, ModelHook]]:
        for name, cuts in self._cuts.items():
            yield self.network.get_submodule(name), TokensHook(name, cuts)
        yield from self._attention_hooks(any("encoder_hidden_states" in cuts.arguments for cuts in self._cuts.values()))


_MANY = 4096
"""More parts than there will be ranks."""


def shard_network(network: Any) -> ShardedNetwork | None:
    """A network with the hooks that it needs; None where it is not known how it can be cut."""
    if type(network).__name__ == "UNet2DConditionModel":
        return RowShards(network, 2 ** (len(network.config.block_out_channels) - 1)) if is_plain(network) else None
    cuts = known_cuts(network)
    return None if cuts is None else TokenShards(network, cuts)


def _why_whole(network: nn.Module, within: Sequence[_Hook]) -> str:
    """Why a network cannot be cut that has some hooks within compiled blocks; empty where it can."""
    for module, hook in within:
        if not isinstance(hook, AttentionHook) or "forward" in vars(module):
            return f"{type(module).__name__} of {type(network).__name__} is compiled as a part of a larger module"
    return ""


def _why_not_by_rows(network: nn.Module, layers: Sequence[nn.Module]) -> str:
    """Why convolutional layers cannot be cut, whose weights our hooks use themselves; empty where they can."""
    if any(map(is_hooked_by_others, layers)):
        return f"layers of {type(network).__name__} have hooks of others, which bring or cast weights one by one"
    return ""


def why_not_by_rows(network: Any) -> str:
    """The same of a U-Net or of ControlNets, hooked or not yet; empty for networks that are cut by tokens."""
    nets = getattr(network, "nets", [network])
    if not any(type(net).__name__ in ("UNet2DConditionModel", "ControlNetModel") for net in nets):
        return ""
    kinds = nn.Conv2d, nn.GroupNorm, Downsample2D
    return _why_not_by_rows(network, [module for module in network.modules() if isinstance(module, kinds)])


def is_hooked_by_others(layer: Any) -> bool:
    """Whether somebody may bring a layer's weights, or cast them, when it is called: offload by layer, for instance."""
    return hasattr(layer, "_hf_hook") or any(not name.startswith(_OURS) for name in hooks_of(layer))


def is_plain(network: nn.Module) -> bool:
    """Whether all layers of a convolutional network are such as the hooks know."""
    for module in network.modules():
        if isinstance(module, ATTENTIONS) and getattr(module, "add_k_proj", None) is not None:
            return False  # keys of picture and text in one attention
        if isinstance(module, nn.Conv2d):
            if module.padding_mode != "zeros" or isinstance(module.padding, str) or module.dilation != (1, 1):
                return False
        elif isinstance(module, (nn.Conv1d, nn.Conv3d, KDownsample2D, KUpsample2D)):
            return False
    return True


def _rows_of(value: Any, rows: int, own: slice, is_picture: bool) -> Any:
    """The rows of a part in features of whatever scale."""
    if not is_picture:
        return value
    if isinstance(value, (list, tuple)):
        return type(value)(_rows_of(item, rows, own, True) for item in value)
    if not isinstance(value, torch.Tensor):
        return value
    if isinstance(value, PartTensor):
        return value.as_subclass(torch.Tensor)
    if (times := value.shape[2] // rows) > 1:  # pixels, where the others are latents
        return value[:, :, own.start * times : own.stop * times]
    scale = 1 << (-(-rows // value.shape[2]) - 1).bit_length()  # each level has half the rows, rounded up
    return value[:, :, own.start // scale : -(-own.stop // scale)]


def _joined(answer: Any, join: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """An answer whose one tensor is put together from all parts."""
    if isinstance(answer, torch.Tensor):
        return join(answer)
    if isinstance(answer, tuple):
        return (join(answer[0]), *answer[1:])
    answer.sample = join(answer.sample)
    return answer


def _form(value: Any) -> Any:
    """What of an argument decides lengths inside of the network."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape)
    if isinstance(value, (list, tuple)):
        return tuple(_form(item) for item in value)
    return None
