"""Images that users keep in files."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from ..errors import UsageError


def read_image(path: Path) -> Image.Image:
    """An image from a file, in RGB.

    Raises:
        UsageError: it cannot be read, or is none.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except OSError as error:
        raise UsageError(f"cannot read the image {path}: {error.strerror or 'not an image'}") from error
