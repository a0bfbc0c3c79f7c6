"""What a rank gives the stock pipeline, and hands back of what it makes."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any


def arguments_of_rank(
    pipe: Any, arguments: dict[str, Any], end_step: Callable[[], None], decodes: bool
) -> dict[str, Any]:
    """The arguments with which a rank calls the stock pipeline.

    Args:
        pipe: The pipeline.
        arguments: Of the parallel pipeline's call, by name.
        end_step: To be called at the end of every step.
        decodes: Whether this rank decodes; otherwise it stops at latents where the pipeline can.
    """
    parameters = inspect.signature(pipe.__call__).parameters
    callback, mine = arguments.get("callback_on_step_end"), dict(arguments)
    if "callback_on_step_end" in parameters:
        mine["callback_on_step_end"] = _counting(callback, end_step)
    wanted_tensors = getattr(callback, "tensor_inputs", None)
    if wanted_tensors is not None:  # diffusers asks its own callback classes which tensors they want
        mine["callback_on_step_end_tensor_inputs"] = wanted_tensors
    if not decodes and "output_type" in parameters:
        mine["output_type"] = "latent"
    return mine


def without_images(output: Any) -> Any:
    """An output of that form in which there is nothing."""
    if isinstance(output, tuple):
        return (None,) * len(output)
    if not dataclasses.is_dataclass(output) or isinstance(output, type):
        return output
    return type(output)(**{field.name: None for field in dataclasses.fields(output)})


def _counting(callback: Any, end_step: Callable[[], None]) -> Any:
    """A step-end callback that runs the user's, then closes the step."""

    @functools.wraps(callback or end_step)
    def on_step_end(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        changed = tensors if callback is None else callback(pipe, step, timestep, tensors)
        end_step()
        return changed

    return on_step_end
