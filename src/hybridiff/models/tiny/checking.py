"""The checker of images: what of a scene is to be seen in one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
import numpy.typing as npt

from .scenes import COLOURS, PALETTE, SHAPES, SIDE, Scene, parse_caption

Array = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

_SIZE_BORDER = 20.5
_RING_HOLE = 0.52  # inner radius over outer radius
_CROSS_ARM = 0.34  # half the width of an arm over the half side


@dataclass(frozen=True)
class Verdict:
    """What of a scene was found in an image; `None` means that the caption does not mention the attribute.

    `position` is the place of a single object or the relation of two.
    """

    colours: bool
    shapes: bool
    position: bool | None
    background: bool | None
    sizes: bool | None

    @property
    def core(self) -> bool:
        """Colours, position and background are right."""
        return self.colours and self.position is not False and self.background is not False

    @property
    def all(self) -> bool:
        """Every attribute that the caption mentions is right."""
        return self.core and self.shapes and self.sizes is not False


@dataclass(frozen=True)
class _Blob:
    """A connected region that is not background; lengths as shares of the image's side."""

    colour: str | None
    shape: str | None
    centre: tuple[float, float]
    radius: float


def check(image: Any, scene: Scene) -> Verdict:
    """Compare an image (PIL image, or array (H, W, 3) of bytes or of 0..1) with the scene of its caption."""
    pixels = _as_pixels(image)
    background, plane = _find_background(pixels)
    blobs = _find_blobs(pixels, plane)
    found_background = None if scene.background is None else background == scene.background
    if len(blobs) != len(scene.objects):
        return _nothing_found(scene, found_background)
    verdicts = [_compare(order, scene, found_background) for order in permutations(blobs)]
    return max(verdicts, key=lambda one: (one.all, one.core, one.colours + one.shapes + (one.position is True)))


def is_right(pixels: Any, text: str) -> bool | None:
    """Whether an image shows what its caption says, colours, position and background; None where nobody can tell."""
    try:
        return check(pixels, parse_caption(text)).core
    except (ValueError, ModuleNotFoundError):  # no caption, or the checker lacks what hybridiff[eval] brings
        return None


def _compare(blobs: Sequence[_Blob], scene: Scene, background: bool | None) -> Verdict:
    pairs = list(zip(blobs, scene.objects, strict=True))
    sized = [pair for pair in pairs if pair[1].size is not None]
    return Verdict(
        colours=all(blob.colour == item.colour for blob, item in pairs),
        shapes=all(blob.shape == item.shape for blob, item in pairs),
        position=_check_position(blobs, scene),
        background=background,
        sizes=all((blob.radius * SIDE < _SIZE_BORDER) == (item.size == "small") for blob, item in sized)
        if sized
        else None,
    )


def _nothing_found(scene: Scene, background: bool | None) -> Verdict:
    placed = scene.relation is not None or scene.objects[0].position is not None
    sized = any(item.size is not None for item in scene.objects)
    return Verdict(False, False, False if placed else None, background, False if sized else None)


def _check_position(blobs: Sequence[_Blob], scene: Scene) -> bool | None:
    if scene.relation is not None:
        return _direction(blobs[0].centre, blobs[1].centre) == scene.relation
    wanted = scene.objects[0].position
    if wanted is None:
        return None
    side = _direction(blobs[0].centre, (0.5, 0.5))
    names = {"left of": "left", "right of": "right", "above": "top", "below": "bottom", None: "center"}
    return names[side] == wanted


def _direction(first: tuple[float, float], second: tuple[float, float]) -> str | None:
    """Where the first point lies from the second; `None` when they are closer than an eighth of the image."""
    right, down = first[0] - second[0], first[1] - second[1]
    if max(abs(right), abs(down)) < 0.125:
        return None
    if abs(right) > abs(down):
        return "right of" if right > 0 else "left of"
    return "below" if down > 0 else "above"


def _as_pixels(image: Any) -> Array:
    pixels = np.asarray(image)
    if pixels.ndim != 3 or pixels.shape[2] < 3:
        raise ValueError(f"a colour image (H, W, 3) is needed, got shape {pixels.shape}")
    scale = 255.0 if pixels.dtype == np.uint8 else 1.0
    return (pixels[..., :3] / scale).astype(np.float32)


def _find_background(pixels: Array) -> tuple[str | None, Array]:
    """The colour of most of the border, and a plane fitted to it (H, W, 3): backgrounds are gradients."""
    height, width = pixels.shape[:2]
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    edge = max(2, height // 32)
    border = (x < edge) | (y < edge) | (x >= width - edge) | (y >= height - edge)
    near = _nearest(pixels[border])
    labels, counts = np.unique(near, return_counts=True)
    label = int(labels[counts.argmax()])
    colour = COLOURS[label] if label >= 0 and counts.max() > 0.75 * near.size else None
    design = np.stack([np.ones_like(x), x / width, y / height], -1)
    solution = np.linalg.lstsq(design[border][near == label], pixels[border][near == label], rcond=None)[0]
    return colour, (design @ solution).astype(np.float32)


_SHADES = (0.8, 0.87, 0.94, 1.0, 1.06)
_COLOUR_TOLERANCE = 0.2  # Euclidean, in RGB of 0..1, to the closest shade


def _nearest(colours: Array) -> npt.NDArray[np.int64]:
    """Index in `COLOURS` of the nearest palette colour under any shade, -1 where none is near; (N, 3) -> (N,)."""
    shades = np.array([[value * shade for value in rgb] for rgb in PALETTE.values() for shade in _SHADES], np.float32)
    squares = (colours**2).sum(1)[:, None] - 2 * colours @ shades.T + (shades**2).sum(1)  # (N, colours x shades)
    closest = squares.argmin(1)
    return np.where(squares.min(1) < _COLOUR_TOLERANCE**2, closest // len(_SHADES), -1)


def _find_blobs(pixels: Array, plane: Array) -> list[_Blob]:
    try:
        from scipy import ndimage
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("checking captions needs scipy; install hybridiff[eval]") from error

    difference = np.abs(pixels - plane).max(-1)
    labels, count = ndimage.label(difference > 0.14)
    smallest = 0.004 * difference.size  # a small cross covers 0.02 of the image
    regions = [labels == index for index in range(1, count + 1)]
    return [_blob(pixels, difference, region) for region in regions if region.sum() > smallest]


def _blob(pixels: Array, difference: Array, region: Mask) -> _Blob:
    contrast = float(np.percentile(difference[region], 80))
    mask = region & (difference > 0.5 * contrast)
    inside = region & (difference > 0.8 * contrast)
    label = int(_nearest(np.median(pixels[inside], axis=0)[None])[0])
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    height, width = mask.shape
    return _Blob(
        colour=COLOURS[label] if label >= 0 else None,
        shape=_best_shape(mask[top:bottom, left:right]),
        centre=((left + right) / 2 / width, (top + bottom) / 2 / height),
        radius=max((right - left) / width, (bottom - top) / height) / 2,
    )


def _best_shape(mask: Mask) -> str | None:
    """The shape whose template, stretched to the bounding box, overlaps best; `None` below an overlap of 0.7."""
    height, width = mask.shape
    y, x = np.meshgrid(np.linspace(-1, 1, 2 * height + 1)[1::2], np.linspace(-1, 1, 2 * width + 1)[1::2], indexing="ij")
    overlaps = {}
    for shape in SHAPES:
        template = shape_distance(shape, x.astype(np.float32), y.astype(np.float32), 1.0) <= 0
        overlaps[shape] = float((template & mask).sum() / (template | mask).sum())
    best = max(overlaps, key=lambda shape: overlaps[shape])
    return best if overlaps[best] > 0.7 else None


def shape_distance(shape: str, x: Array, y: Array, radius: float) -> Array:
    """Signed distance in pixels (negative inside) to a shape whose bounding box has half side `radius`."""
    arm = _CROSS_ARM * radius
    from_centre: Array = np.hypot(x, y)
    if shape == "circle":
        found = from_centre - radius
    elif shape == "ring":
        found = np.maximum(from_centre - radius, _RING_HOLE * radius - from_centre)
    elif shape == "square":
        found = np.maximum(np.abs(x), np.abs(y)) - radius
    elif shape == "cross":
        upright = np.maximum(np.abs(x) - arm, np.abs(y) - radius)
        found = np.minimum(upright, np.maximum(np.abs(y) - arm, np.abs(x) - radius))
    elif shape == "triangle":  # apex at the top, sides 2 : 1
        found = np.maximum(y - radius, (2 * np.abs(x) - y - radius) / np.float32(5**0.5))
    else:
        raise ValueError(f"unknown shape {shape!r}; the shapes are {', '.join(SHAPES)}")
    return found.astype(np.float32)
