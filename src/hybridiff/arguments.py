"""Arguments of a pipeline's call that need no network to be refused."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from .errors import UsageError
from .utils.checked import check_limits
from .utils.names import require_known

MOST_STEPS = 10_000
MOST_IMAGES = 1024
MOST_PIXELS = 16_384
"""Height and width in pixels; larger images are typing errors, or want another program."""

_COUNTS = {"num_inference_steps": MOST_STEPS, "num_images_per_prompt": MOST_IMAGES}
_NOT_NEGATIVE = ("guidance_scale", "guidance_rescale", "true_cfg_scale", "clip_skip", "max_sequence_length")


@dataclass(frozen=True)
class SizeLimits:
    """Which heights and widths, in pixels, a model takes.

    Attributes:
        multiple: They are multiples of this.
        largest: They are at most this.
        model: What the user calls it.
    """

    multiple: int = 1
    largest: int = MOST_PIXELS
    model: str = "this model"


def check_arguments(arguments: Mapping[str, Any], sizes: SizeLimits) -> None:
    """Refuse numbers that are none, negative or absurd, naming the user's own argument.

    Raises:
        UsageError: with the value and what would do.
    """
    for name, value in arguments.items():
        numbers = value.tolist() if getattr(value, "ndim", 0) == 1 else value
        for number in numbers if isinstance(numbers, (list, tuple)) else (numbers,):
            if isinstance(number, Real) and not isinstance(number, Integral) and not math.isfinite(number):
                raise UsageError(f"{name} must be a finite number, got {value}")
    for name, most in _COUNTS.items():
        _check_integer(name, arguments.get(name), most)
    for name in ("height", "width"):
        _check_size(name, arguments.get(name), sizes)
    for name in _NOT_NEGATIVE:
        value = arguments.get(name)
        if isinstance(value, str):
            raise UsageError(f"{name} must be a number, got {value!r}")
        if isinstance(value, Real):  # numpy's too
            check_limits(name, float(value), least=0, most=1e6)
    if isinstance(prompts := arguments.get("prompt"), list) and not prompts:
        raise UsageError("prompt must be one or several, got an empty list")


def check_known(pipeline: type, arguments: Iterable[str]) -> None:
    """Refuse arguments that a pipeline does not have: some take any, and ignore what they do not know.

    Raises:
        UsageError: with the arguments that it has.
    """
    known = [name for name in inspect.signature(pipeline.__call__).parameters if name not in ("self", "kwargs")]
    for name in arguments:
        require_known(f"argument of {pipeline.__name__}", name, known)


def _check_integer(name: str, value: Any, most: int) -> None:
    if value is not None and (
        not isinstance(value, Integral) or isinstance(value, bool) or not 1 <= int(value) <= most
    ):
        raise UsageError(f"{name} must be an integer from 1 to {most}, got {value!r}")


def _check_size(name: str, value: Any, sizes: SizeLimits) -> None:
    if value is None:
        return
    if not isinstance(value, Integral) or int(value) < 1 or int(value) % sizes.multiple:
        what = "integer" if sizes.multiple == 1 else f"multiple of {sizes.multiple}"
        raise UsageError(f"{name} must be a positive {what} for {sizes.model}, got {value!r}")
    if int(value) > sizes.largest:
        raise UsageError(f"{name} must be at most {sizes.largest} pixels for {sizes.model}, got {value}")
