"""Captioned scenes of one or two shapes: what they may hold, the grammar of their captions, and their splits.

A `Scene` says what a caption says; what the caption leaves out is `None`, which `checking.check` passes over.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

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

_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


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
