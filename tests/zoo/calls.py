"""Guided calls that several pipelines take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from support import pipelines
from support.pipelines import SIZE

TEXT: dict[str, Any] = {"prompt": "a red ring", "negative_prompt": "blurred", "guidance_scale": 5.0}


def text() -> dict[str, Any]:
    return TEXT | {"height": SIZE, "width": SIZE}


def image() -> dict[str, Any]:
    return TEXT | {"image": pipelines.start_image(), "strength": 0.8}


def inpaint() -> dict[str, Any]:
    return image() | {"mask_image": pipelines.mask(), "height": SIZE, "width": SIZE}


def edit() -> dict[str, Any]:
    return TEXT | {"image": pipelines.start_image(), "image_guidance_scale": 2.0}


def control() -> dict[str, Any]:
    return text() | {"image": pipelines.start_image()}


def control_image() -> dict[str, Any]:
    return image() | {"control_image": pipelines.start_image(), "height": SIZE, "width": SIZE}


def control_inpaint() -> dict[str, Any]:
    return inpaint() | {"control_image": pipelines.start_image()}


def with_arguments(call: Callable[[], dict[str, Any]], **more: Any) -> Callable[[], dict[str, Any]]:
    """The call with more arguments, or others."""
    return lambda: call() | more
