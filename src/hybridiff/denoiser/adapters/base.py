"""What has to be known of a family of denoisers: one adapter per family, all of it in one place."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput

from ...config import PublishedSettings
from ..layers import Layer
from ..split import SplitPoint


class DenoiserAdapter(ABC):
    """A family of denoisers; unless it says otherwise as transformers mostly are, with the settings found for SD3.

    Attributes:
        class_name: The network's class in diffusers.
        attribute: Where a pipeline keeps it.
        sample: Name of the argument that holds the noisy sample, (rows, ...); empty where it is the first one.
        keeps_residual: What carries over from an inner stage to later steps is what it adds to its input.
        reuse_share: Work of the outer stage that reuse steps aim at: small, as the outer stage is what they cost.
        published: Settings of the published rule for the family, for 50 steps.
        repeated_blocks: Classes of the blocks to be compiled one by one, where diffusers does not say so.
        cuda_dtype: Type in which its pipelines are loaded on CUDA unless told otherwise.
    """

    class_name: ClassVar[str]
    attribute: ClassVar[str]
    sample: ClassVar[str]
    # Blocks add to the streams that run through them, so what the inner ones add is the smoother quantity.
    keeps_residual: ClassVar[bool] = True
    reuse_share: ClassVar[float] = 1 / 6
    # The README of the paper's code (SD3-medium, w = 7); its appendix has a slope_threshold of 1e-4.
    published: ClassVar = PublishedSettings(slope_window=15, slope_threshold=5e-4, parallel_steps=5, tau_cap=40)
    repeated_blocks: ClassVar[tuple[str, ...]] = ()
    cuda_dtype: ClassVar[str] = "bfloat16"

    def output(self, sample: Any) -> Any:
        """The network's own output object, which pipelines get where `return_dict` is true."""
        return Transformer2DModelOutput(sample=sample)

    @abstractmethod
    def layers(self, network: Any) -> list[Layer]:
        """The network's layers in order of execution.

        Raises:
            UsageError: its inside is not known.
        """

    @abstractmethod
    def split_points(self, network: Any) -> list[SplitPoint]:
        """All legal split points, in terms of `layers`."""

    def skips(self, network: Any) -> dict[int, int]:
        """Layers that take in the output of an earlier one, beside that of the one before them, and which, by index."""
        return {}

    def extra_steps(self, pipe: Any, arguments: Mapping[str, Any], steps: int) -> frozenset[int]:
        """Steps in which a call evaluates the network once more, beside the guided evaluation.

        Args:
            pipe: The pipeline.
            arguments: Of the call, by name.
            steps: Number of denoising steps.
        """
        return frozenset()

    def largest_size(self, network: Any) -> int | None:
        """Largest height and width of a latent that the network takes; None where there is no limit."""
        return None


def argument(pipe: Any, arguments: Mapping[str, Any], name: str) -> Any:
    """An argument of a pipeline's call, or its default; None where it has no such argument."""
    parameter = inspect.signature(pipe.__call__).parameters.get(name)
    return arguments.get(name, parameter and parameter.default)


def guiding_scale(pipe: Any, arguments: Mapping[str, Any]) -> float | None:
    """The scale by which guidance combines a call's branches; None where the pipeline does not say.

    `true_cfg_scale` where there is one: there `guidance_scale` is an input of the network.
    """
    now = getattr(pipe, "guidance_scale", None)  # during a call, which callbacks may change
    scales = argument(pipe, arguments, "true_cfg_scale"), now, argument(pipe, arguments, "guidance_scale")
    return next((float(scale) for scale in scales if isinstance(scale, (int, float))), None)


def execution_device(pipe: Any) -> torch.device:
    """Where a pipeline's networks run, though offload may keep them elsewhere between calls."""
    device: torch.device | None = getattr(pipe, "_execution_device", None)
    return pipe.device if device is None else device  # asked for last: it looks through all networks
