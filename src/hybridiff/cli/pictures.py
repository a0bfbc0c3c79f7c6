"""Images that pipelines start from: read from files, by the names that the pipeline has for them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import UsageError
from ..models import tiny
from ..models.controlnets import controlled_class
from ..models.folder import ModelFolder
from ..utils.images import read_image
from .target import parameters

_FROM_IMAGES = ("ImageToVideo", "Img2Img", "Inpaint")
"""In names of classes that do not say in their signature that they cannot do without an image."""


def choose_task(folder: ModelFolder, given: Mapping[str, Any], controlled: bool) -> str:
    """The task to load a model for: its own where its class takes the image by itself."""
    own = parameters(folder.pipeline_class) if given.get("image") else {}
    if not given.get("image") or ("image" in own and not controlled):
        return "text-to-image"
    return "inpainting" if given.get("mask_image") else "image-to-image"


def read_pictures(
    folder: ModelFolder, task: str, given: Mapping[str, Any], controlled: bool
) -> tuple[type | None, dict[str, Any]]:
    """The pipeline's class, where it is known, and the images as arguments of its call.

    Args:
        folder: The model.
        task: What it is loaded for.
        given: Paths by option: `image`, `mask_image`, `control_image`.
        controlled: Whether there are ControlNets.

    Raises:
        UsageError: a file is no image, the pipeline does not take it or needs another one, or a mask does not fit.
    """
    if "mask_image" in given and "image" not in given:
        raise UsageError("--mask-image says where an image is to be painted anew; give that one too, by --image")
    pipeline = folder.pipeline_class if given or controlled or folder.name not in tiny.EMBEDDED else None
    if controlled:
        pipeline = controlled_class(pipeline, task)
    elif task != "text-to-image":
        pipeline = _from_images(folder, task)
    known, arguments = parameters(pipeline), {}
    for option, paths in given.items():
        # In pipelines that start from words, the image of the ControlNet is the only one.
        name = "image" if option == "control_image" and known and option not in known else option
        if (known and name not in known) or name in arguments or (option == "control_image" and not known):
            what = folder.index["_class_name"] if pipeline is None else pipeline.__name__
            raise UsageError(f"{what} takes no --{option.replace('_', '-')}")
        arguments[name] = _read(paths)
    _check_sizes(arguments.get("image"), arguments.get("mask_image"))
    if pipeline is not None and "image" in known and "image" not in arguments:
        is_needed = known["image"].default is inspect.Parameter.empty
        if is_needed or any(part in pipeline.__name__ for part in _FROM_IMAGES):
            raise UsageError(f"{pipeline.__name__} needs an image: give one by --image")
    return pipeline, arguments


def _from_images(folder: ModelFolder, task: str) -> type:
    """The class by which AutoPipeline loads a model that is to start from an image."""
    from diffusers.pipelines import auto_pipeline

    classes = {
        "image-to-image": auto_pipeline.AUTO_IMAGE2IMAGE_PIPELINES_MAPPING,
        "inpainting": auto_pipeline.AUTO_INPAINT_PIPELINES_MAPPING,
    }
    own = folder.index["_class_name"]
    found: type | None = auto_pipeline._get_task_class(classes[task], own, throw_error_if_not_exist=False)
    if found is None:
        raise UsageError(f"{own} takes no --image, and diffusers has no other pipeline for {task} with its networks")
    return found


def _check_sizes(image: Any, mask: Any) -> None:
    """A mask says of each pixel of the image whether it is to be painted."""
    if isinstance(image, Image.Image) and isinstance(mask, Image.Image) and image.size != mask.size:
        sizes = ["x".join(map(str, one.size)) for one in (mask, image)]
        raise UsageError(f"--mask-image has {sizes[0]} pixels, --image has {sizes[1]}; give them one size")


def _read(paths: str | Sequence[str]) -> Any:
    several = [paths] if isinstance(paths, str) else list(paths)
    images = [read_image(Path(path).expanduser()) for path in several]
    return images[0] if len(images) == 1 else images
