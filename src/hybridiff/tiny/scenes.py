"""Captioned scenes of one or two shapes: their grammar, their renderer and the checker of a drawn picture.

A `Scene` says what a caption says; what the caption leaves out is `None`. `render` fills the gaps at random,
`check` passes over them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

SIDE = 128
SHAPES = ("circle", "square", "triangle", "ring", "cross")
SIZES = ("small", "large")
PALETTE: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.10, 0.12),
    "green": (0.12, 0.62, 0.20),
    "blue": (0.12, 0.28, 0.86),
    "yellow": (0.97, 0.88, 0.12),
    "purple": (0.56, 0.16, 0.72),
    "orange": (0.98, 0.48, 0.06),
    "white": (0.97, 0.97, 0.97),
    "black": (0.06, 0.06, 0.06),
}
COLOURS = tuple(PALETTE)
POSITIONS = ("left", "right", "top", "bottom", "center")
RELATIONS = ("left of", "right of", "above", "below")
SPLITS = ("train", "calibration", "evaluation")

_RADII = {"small": (14.0, 17.0), "large": (24.0, 28.0)}  # half the side of the bounding box, in pixels of 128
_SIZE_BORDER = 20.5
_POSITION_CENTRES = {"left": (33, 64), "right": (95, 64), "top": (64, 33), "bottom": (64, 95), "center": (64, 64)}
_RELATION_AXES = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}  # of the first object
_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
_RING_HOLE = 0.52  # inner radius over outer radius
_CROSS_ARM = 0.34  # half the width of an arm over the half side


@dataclass(frozen=True)
class SceneObject:
    """One shape of a scene; `size` and `position` may be left out of the caption (`None`)."""

    shape: str
    colour: str
    size: str | None = None
    position: str | None = None


@dataclass(frozen=True)
class Scene:
    """One object, or two with the `relation` of the first to the second, on a background (`None`: not said)."""

    objects: tuple[SceneObject, ...]
    background: str | None = None
    relation: str | None = None


@dataclass(frozen=True)
class Verdict:
    """What of a scene was found in a picture; `None` means that the caption does not mention the attribute.

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


# ---------------------------------------------------------------- captions


def caption(scene: Scene) -> str:
    """The caption of a scene, for example `a small red circle at the left on a yellow background`."""
    parts = [_object_words(scene.objects[0])]
    if len(scene.objects) == 2:
        parts += [str(scene.relation), _object_words(scene.objects[1])]
    if scene.background is not None:
        parts += ["on", _article(scene.background), scene.background, "background"]
    return " ".join(parts)


_OBJECT = (
    rf"(?:an?|the)\s+(?:(?P<size{{0}}>{'|'.join(SIZES)})\s+)?(?P<colour{{0}}>{'|'.join(COLOURS)})\s+"
    rf"(?P<shape{{0}}>{'|'.join(SHAPES)})"
)
_CAPTION = re.compile(
    _OBJECT.format(0)
    + r"(?:\s+(?:at\s+the\s+(?P<edge>left|right|top|bottom)|in\s+the\s+(?P<middle>center)))?"
    + rf"(?:\s+(?P<relation>{'|'.join(RELATIONS)})\s+{_OBJECT.format(1)})?"
    + rf"(?:\s+on\s+an?\s+(?P<background>{'|'.join(COLOURS)})\s+background)?\s*\.?"
)


def parse_caption(text: str) -> Scene:
    """The scene that a caption of the grammar describes; `ValueError` for any other text."""
    found = _CAPTION.fullmatch(text.strip().lower())
    if found is None or (found["relation"] and (found["edge"] or found["middle"])):
        raise ValueError(f"not a caption of the scene grammar: {text!r}")
    first = SceneObject(found["shape0"], found["colour0"], found["size0"], found["edge"] or found["middle"])
    if found["relation"] is None:
        return Scene((first,), found["background"])
    second = SceneObject(found["shape1"], found["colour1"], found["size1"])
    return Scene((first, second), found["background"], found["relation"])


def _object_words(item: SceneObject) -> str:
    words = [word for word in (item.size, item.colour, item.shape) if word is not None]
    place = "" if item.position is None else f" {'in' if item.position == 'center' else 'at'} the {item.position}"
    return f"{_article(words[0])} {' '.join(words)}{place}"


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def vocabulary() -> list[str]:
    """Every word of the grammar, sorted."""
    words = {"a", "an", "the", "at", "in", "on", "of", "above", "below", "background"}
    return sorted(words.union(SHAPES, SIZES, COLOURS, POSITIONS))


# ---------------------------------------------------------------- splits


def split_of(scene: Scene) -> str:
    """The split of a fully described scene, from a hash of everything but the sizes.

    80 % of the combinations are for training, 10 % for calibration, 10 % for evaluation. `A left of B` and
    `B right of A` are the same combination.
    """
    bucket = int.from_bytes(hashlib.blake2b(_combination(scene).encode(), digest_size=4).digest(), "big") % 10
    return {0: "calibration", 1: "evaluation"}.get(bucket, "train")


def sample_scenes(split: str, objects: int, rng: np.random.Generator) -> Iterator[Scene]:
    """Endless fully described scenes of a split, with 1 or 2 objects."""
    if split not in SPLITS or objects not in (1, 2):
        raise ValueError(f"split {split!r} with {objects} objects: one of {SPLITS} with 1 or 2 objects is needed")
    while True:
        scene = _random_scene(objects, rng)
        if split_of(scene) == split:
            yield scene


def captions(split: str, count: int, objects: int = 1, seed: int = 0) -> list[str]:
    """`count` different captions of a split; a quarter of the sizes are left out, positions never are."""
    rng = np.random.default_rng([SPLITS.index(split), objects, seed])
    found: dict[str, None] = {}
    for scene in sample_scenes(split, objects, rng):
        found[caption(drop_attributes(scene, rng, position_share=0.0))] = None
        if len(found) == count:
            break
    return list(found)


def drop_attributes(
    scene: Scene,
    rng: np.random.Generator,
    size_share: float = 0.25,
    position_share: float = 0.25,
    background_share: float = 0.0,
) -> Scene:
    """The scene with some sizes, positions and backgrounds left unsaid, each with its share of the time."""
    objects = tuple(
        replace(
            item,
            size=None if rng.random() < size_share else item.size,
            position=None if rng.random() < position_share else item.position,
        )
        for item in scene.objects
    )
    background = None if rng.random() < background_share else scene.background
    return replace(scene, objects=objects, background=background)


def _combination(scene: Scene) -> str:
    items, relation = list(scene.objects), scene.relation
    if relation in ("right of", "below"):
        items, relation = items[::-1], _OPPOSITE[relation]
    words = [f"{item.shape} {item.colour} {item.position}" for item in items]
    return "|".join([*words, str(relation), str(scene.background)])


def _random_scene(objects: int, rng: np.random.Generator) -> Scene:
    colours = [str(colour) for colour in rng.permutation(COLOURS)[: objects + 1]]
    items = tuple(
        SceneObject(
            str(rng.choice(SHAPES)),
            colours[index],
            str(rng.choice(SIZES)),
            str(rng.choice(POSITIONS)) if objects == 1 else None,
        )
        for index in range(objects)
    )
    return Scene(items, colours[-1], str(rng.choice(RELATIONS)) if objects == 2 else None)


# ---------------------------------------------------------------- renderer


def render(scene: Scene, rng: np.random.Generator) -> Array:
    """Draw a scene: an array (128, 128, 3) of values 0..1; what the scene leaves open is chosen by `rng`."""
    scene = _completed(scene, rng)
    picture = _background(str(scene.background), rng)
    for item, centre, radius in zip(scene.objects, *_layout(scene, rng), strict=True):
        _paint(picture, item, centre, radius, rng)
    return np.clip(picture, 0.0, 1.0)


def _completed(scene: Scene, rng: np.random.Generator) -> Scene:
    taken = {item.colour for item in scene.objects}
    free = [colour for colour in COLOURS if colour not in taken]
    alone = len(scene.objects) == 1
    objects = tuple(
        replace(
            item,
            size=item.size or str(rng.choice(SIZES)),
            position=item.position or (str(rng.choice(POSITIONS)) if alone else None),
        )
        for item in scene.objects
    )
    return replace(scene, objects=objects, background=scene.background or str(rng.choice(free)))


def _layout(scene: Scene, rng: np.random.Generator) -> tuple[list[Array], list[float]]:
    """Centres (x, y) and radii, in pixels, with at least five pixels between two objects."""
    radii = [float(rng.uniform(*_RADII[str(item.size)])) for item in scene.objects]
    if scene.relation is None:
        base = np.array(_POSITION_CENTRES[str(scene.objects[0].position)], np.float32)
        return [base + rng.uniform(-3, 3, 2).astype(np.float32)], radii
    axis = np.array(_RELATION_AXES[scene.relation], np.float32)
    across = np.abs(axis[::-1])
    first = 64 + axis * rng.uniform(28, 34) + across * rng.uniform(-10, 10)
    second = 64 - axis * rng.uniform(28, 34) + across * rng.uniform(-10, 10)
    gap = float(np.abs((first - second) @ axis)) - sum(radii)
    shift = max(0.0, 5.0 - gap) / 2
    return [(first + axis * shift).astype(np.float32), (second - axis * shift).astype(np.float32)], radii


def _grid() -> tuple[Array, Array]:
    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32) + 0.5
    return x, y


def _background(colour: str, rng: np.random.Generator) -> Array:
    x, y = _grid()
    angle, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0.0, 0.08)
    ramp = ((x - 64) * np.cos(angle) + (y - 64) * np.sin(angle)) / 64 * strength
    return _shaded(colour, ramp)


def _paint(picture: Array, item: SceneObject, centre: Array, radius: float, rng: np.random.Generator) -> None:
    x, y = _grid()
    x, y = x - centre[0], y - centre[1]
    shade = 0.04 - rng.uniform(0.02, 0.12) * (x**2 + y**2) / radius**2
    coverage = np.clip(0.5 - _distance(item.shape, x, y, radius), 0, 1)[..., None]
    picture += coverage * (_shaded(item.colour, np.clip(shade, -0.12, 0.04)) - picture)


def _shaded(colour: str, shade: Array) -> Array:
    """A colour made darker (shade < 0) or lighter; black can only become lighter, so it moves half as far."""
    base = np.array(PALETTE[colour], np.float32)
    change = shade[..., None] * (base if colour != "black" else np.full(3, 0.4, np.float32))
    return (base + change).astype(np.float32)


def _distance(shape: str, x: Array, y: Array, radius: float) -> Array:
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


# ---------------------------------------------------------------- checker


@dataclass(frozen=True)
class _Blob:
    """A connected region that is not background; lengths as shares of the picture's side."""

    colour: str | None
    shape: str | None
    centre: tuple[float, float]
    radius: float


def check(picture: Any, scene: Scene) -> Verdict:
    """Compare a picture (PIL image, or array (H, W, 3) of bytes or of 0..1) with the scene of its caption."""
    pixels = _as_pixels(picture)
    background, plane = _find_background(pixels)
    blobs = _find_blobs(pixels, plane)
    found_background = None if scene.background is None else background == scene.background
    if len(blobs) != len(scene.objects):
        return _nothing_found(scene, found_background)
    verdicts = [_compare(order, scene, found_background) for order in permutations(blobs)]
    return max(verdicts, key=lambda one: (one.all, one.core, one.colours + one.shapes + (one.position is True)))


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
    """Where the first point lies from the second; `None` when they are closer than an eighth of the picture."""
    right, down = first[0] - second[0], first[1] - second[1]
    if max(abs(right), abs(down)) < 0.125:
        return None
    if abs(right) > abs(down):
        return "right of" if right > 0 else "left of"
    return "below" if down > 0 else "above"


def _as_pixels(picture: Any) -> Array:
    pixels = np.asarray(picture)
    if pixels.ndim != 3 or pixels.shape[2] < 3:
        raise ValueError(f"a colour picture (H, W, 3) is needed, got shape {pixels.shape}")
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
    from scipy import ndimage

    difference = np.abs(pixels - plane).max(-1)
    labels, count = ndimage.label(difference > 0.14)
    smallest = 0.004 * difference.size  # a small cross covers 0.02 of the picture
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
        template = _distance(shape, x.astype(np.float32), y.astype(np.float32), 1.0) <= 0
        overlaps[shape] = float((template & mask).sum() / (template | mask).sum())
    best = max(overlaps, key=lambda shape: overlaps[shape])
    return best if overlaps[best] > 0.7 else None
