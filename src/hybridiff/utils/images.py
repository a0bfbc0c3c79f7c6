"""Images that users keep in files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ..errors import UsageError


def read_image(path: Path) -> Image.Image:
    """An image from a file, upright, in RGB; 16 bits of grey, as depth has them, become 8.

    Raises:
        UsageError: it cannot be read, is none, or has values of another kind.
    """
    try:
        with Image.open(path) as image:
            return _in_8_bits(ImageOps.exif_transpose(image), path).convert("RGB")
    except OSError as error:
        raise UsageError(f"cannot read the image {path}: {error.strerror or 'not an image'}") from error


def _in_8_bits(image: Image.Image, path: Path) -> Image.Image:
    """The image where its values have 8 bits each; others would be cut off at 255."""
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() >= 2**16:
        raise UsageError(f"cannot read the image {path}: its values are not of 8 or 16 bits; convert it to 8 bits")
    return Image.fromarray((values / 257).round().astype(np.uint8))
