"""Where networks are while they do not run."""

from __future__ import annotations

from typing import Any

from ..errors import UsageError
from ..utils.names import require_known
from .compiling import check_compile
from .lazy import is_unread

OFFLOADS = ("none", "model", "sequential")
"""Networks stay on their device, go there one by one (diffusers' `enable_model_cpu_offload`), or layer by layer
(`enable_sequential_cpu_offload`): less memory of a GPU for more time."""


def check_offload(offload: str, device: str, compile: str = "none") -> None:
    """Refuse an offload that is unknown, has nowhere to go, or takes the weights from compiled networks.

    Raises:
        UsageError: with what would do.
    """
    require_known("offload", offload, OFFLOADS)
    if offload != "none" and not device.startswith("cuda"):
        raise UsageError(
            f"offload {offload} keeps networks in main memory until a GPU needs them; on the CPU they are there "
            "anyway: leave it out, or use --device cuda"
        )
    check_compile(compile, offload)


def place(pipe: Any, device: str, offload: str) -> Any:
    """Put a pipeline's networks on a device, or have them come there when they run; the pipeline."""
    if offload == "none":
        pipe.to(device)
    elif offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    else:  # what has no weights, has none to bring
        unread = [name for name, part in pipe.components.items() if is_unread(part)]
        pipe._exclude_from_cpu_offload = [*pipe._exclude_from_cpu_offload, *unread]
        pipe.enable_sequential_cpu_offload(device=device)
    return pipe
