"""Images that pipelines start from: read from files, by the names that the pipeline has for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import UsageError
from ..models.controlnets import controlled_class
from ..models.folder import ModelFolder
from .target import parameters


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
        UsageError: a file is no image, or the pipeline does not take it.
    """
    pipeline = folder.pipeline_class if given or controlled else None
    if controlled:
        pipeline = controlled_class(pipeline, task)
    elif task != "text-to-image":
        pipeline = None  # AutoPipeline chooses
    known, arguments = parameters(pipeline), {}
    for option, paths in given.items():
        # In pipelines that start from words, the image of the ControlNet is the only one.
        name = "image" if option == "control_image" and known and option not in known else option
        if (known and name not in known) or name in arguments or (option == "control_image" and not known):
            what = folder.index["_class_name"] if pipeline is None else pipeline.__name__
            raise UsageError(f"{what} takes no --{option.replace('_', '-')}")
        arguments[name] = _read(paths)
    return pipeline, arguments


def _read(paths: str | Sequence[str]) -> Any:
    several = [paths] if isinstance(paths, str) else list(paths)
    images = [_open(Path(path).expanduser()) for path in several]
    return images[0] if len(images) == 1 else images


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except OSError as error:
        raise UsageError(f"cannot read the image {path}: {error.strerror or 'not an image'}") from error
