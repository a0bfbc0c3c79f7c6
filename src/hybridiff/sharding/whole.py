"""What within a network looks at the whole picture in ways that no hook knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..distributed.consistency import FREEU

_ARGUMENTS = {
    "cross_attention_kwargs": {"ip_adapter_masks", "gligen"},
    "joint_attention_kwargs": {"ip_adapter_image_embeds", "ip_hidden_states"},
}
"""Masks of the whole picture, and tokens that an attention takes together with those of the picture."""


def needs_whole_picture(network: Any, arguments: Mapping[str, Any]) -> bool:
    """Whether a call of a network cannot be evaluated by parts, whoever has hooked it.

    Args:
        network: The network; FreeU (arXiv 2309.11497) filters features of whole pictures by their frequencies.
        arguments: Of the call, by name.
    """
    if any(names & (arguments.get(argument) or {}).keys() for argument, names in _ARGUMENTS.items()):
        return True
    return any(all(getattr(block, name, None) for name in FREEU) for block in getattr(network, "up_blocks", ()))
