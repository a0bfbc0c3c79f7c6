"""The renderer of scenes: what the models were trained on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hybridiff.models.tiny.checking import Array, shape_distance
from hybridiff.models.tiny.scenes import COLOURS, PALETTE, POSITIONS, SIDE, SIZES, Scene, SceneObject

_RADII = {"small": (14.0, 17.0), "large": (24.0, 28.0)}  # half the side of the bounding box, in pixels of 128
_POSITION_CENTRES = {"left": (33, 64), "right": (95, 64), "top": (64, 33), "bottom": (64, 95), "center": (64, 64)}
_RELATION_AXES = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}  # of the first object


def render(scene: Scene, rng: np.random.Generator) -> Array:
    """Draw a scene: an array (128, 128, 3) of values 0..1; what the scene leaves open is chosen by `rng`."""
    scene = _completed(scene, rng)
    image = _background(str(scene.background), rng)
    for item, centre, radius in zip(scene.objects, *_layout(scene, rng), strict=True):
        _paint(image, item, centre, radius, rng)
    return np.clip(image, 0.0, 1.0)


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


def _paint(image: Array, item: SceneObject, centre: Array, radius: float, rng: np.random.Generator) -> None:
    x, y = _grid()
    x, y = x - centre[0], y - centre[1]
    shade = 0.04 - rng.uniform(0.02, 0.12) * (x**2 + y**2) / radius**2
    coverage = np.clip(0.5 - shape_distance(item.shape, x, y, radius), 0, 1)[..., None]
    image += coverage * (_shaded(item.colour, np.clip(shade, -0.12, 0.04)) - image)


def _shaded(colour: str, shade: Array) -> Array:
    """A colour made darker (shade < 0) or lighter; black can only become lighter, so it moves half as far."""
    base = np.array(PALETTE[colour], np.float32)
    change = shade[..., None] * (base if colour != "black" else np.full(3, 0.4, np.float32))
    return (base + change).astype(np.float32)
