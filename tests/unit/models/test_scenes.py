"""Scenes: captions, splits, and a checker that accepts what it should and nothing else."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from hybridiff.models.tiny.checking import check
from hybridiff.models.tiny.scenes import (
    COLOURS,
    POSITIONS,
    RELATIONS,
    SHAPES,
    SIZES,
    Scene,
    SceneObject,
    caption,
    captions,
    drop_attributes,
    parse_caption,
    sample_scenes,
    split_of,
)
from tools.tiny_models.drawing import render


def test_captions_read_as_intended() -> None:
    one = Scene((SceneObject("circle", "red", "small", "left"),), "yellow")
    assert caption(one) == "a small red circle at the left on a yellow background"
    two = Scene((SceneObject("cross", "orange"), SceneObject("square", "blue", "large")), "white", "left of")
    assert caption(two) == "an orange cross left of a large blue square on a white background"
    assert parse_caption("a red ring in the center") == Scene((SceneObject("ring", "red", None, "center"),))


@pytest.mark.parametrize("text", ["", "a dog", "a red circle at the left above a blue ring", "a red red circle"])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a caption"):
        parse_caption(text)


@pytest.mark.parametrize("objects", [1, 2])
def test_parsing_inverts_captions(objects: int) -> None:
    rng = np.random.default_rng(1)
    for scene in islice(sample_scenes("train", objects, rng), 300):
        said = drop_attributes(scene, rng, background_share=0.1)
        assert parse_caption(caption(said)) == said


def test_splits_do_not_overlap() -> None:
    for objects in (1, 2):
        evaluation, calibration = (set(captions(split, 200, objects)) for split in ("evaluation", "calibration"))
        assert len(evaluation) == len(calibration) == 200
        assert not evaluation & calibration
    assert captions("evaluation", 20, seed=3) == captions("evaluation", 20, seed=3)
    assert captions("evaluation", 20, seed=3) != captions("evaluation", 20, seed=4)


def test_a_fifth_of_the_combinations_is_held_out() -> None:
    splits = Counter(
        split_of(Scene((SceneObject(shape, colour, "small", place),), background))
        for shape in SHAPES
        for colour in COLOURS
        for place in POSITIONS
        for background in COLOURS
        if background != colour
    )
    held_out = 1 - splits["train"] / splits.total()
    assert 0.15 < held_out < 0.25


def test_a_relation_and_its_opposite_are_one_combination() -> None:
    first, second = SceneObject("ring", "red", "small"), SceneObject("cross", "green", "large")
    for one, other in (("left of", "right of"), ("above", "below")):
        assert split_of(Scene((first, second), "blue", one)) == split_of(Scene((second, first), "blue", other))


@pytest.mark.parametrize("objects", [1, 2])
def test_the_checker_accepts_rendered_scenes(objects: int) -> None:
    rng = np.random.default_rng(2)
    verdicts = [
        check(_image(scene, rng), drop_attributes(scene, rng))
        for scene in islice(sample_scenes("train", objects, rng), 300)
    ]
    assert sum(verdict.all for verdict in verdicts) >= 294


@pytest.mark.parametrize("objects", [1, 2])
@pytest.mark.parametrize("attribute", ["colour", "shape", "size", "background", "place"])
def test_the_checker_refuses_one_difference(objects: int, attribute: str) -> None:
    rng = np.random.default_rng(3)
    verdicts = [
        check(_image(scene, rng), _with_one_difference(scene, attribute, rng))
        for scene in islice(sample_scenes("train", objects, rng), 200)
    ]
    assert sum(verdict.all for verdict in verdicts) <= 10


def test_the_checker_refuses_a_missing_object_and_one_too_many() -> None:
    rng = np.random.default_rng(4)
    two = next(sample_scenes("train", 2, rng))
    one = Scene(two.objects[:1], two.background)
    assert not check(_image(two, rng), one).all
    assert not check(_image(one, rng), two).all


def test_the_checker_reads_other_sizes_and_formats() -> None:
    rng = np.random.default_rng(5)
    scene = next(sample_scenes("train", 2, rng))
    image = render(scene, rng)
    assert check(image, scene).all
    assert check(image.repeat(2, 0).repeat(2, 1), scene).all
    with pytest.raises(ValueError, match="colour image"):
        check(image[..., 0], scene)


def test_unmentioned_attributes_are_not_judged() -> None:
    rng = np.random.default_rng(6)
    verdict = check(render(Scene((SceneObject("ring", "red"),)), rng), Scene((SceneObject("ring", "red"),)))
    assert verdict.position is verdict.background is verdict.sizes is None
    assert verdict.all


def _image(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    return (render(scene, rng) * 255).round().astype(np.uint8)


def _with_one_difference(scene: Scene, attribute: str, rng: np.random.Generator) -> Scene:
    def other(names: tuple[str, ...], *taken: str | None) -> str:
        return str(rng.choice([name for name in names if name not in taken]))

    index = int(rng.integers(len(scene.objects)))
    item, colours = scene.objects[index], [one.colour for one in scene.objects]
    if attribute == "background":
        return replace(scene, background=other(COLOURS, scene.background, *colours))
    if attribute == "place" and scene.relation is not None:
        return replace(scene, relation=other(RELATIONS, scene.relation))
    changed = {
        "colour": replace(item, colour=other(COLOURS, scene.background, *colours)),
        "shape": replace(item, shape=other(SHAPES, item.shape)),
        "size": replace(item, size=other(SIZES, item.size)),
        "place": replace(item, position=other(POSITIONS, item.position)),
    }[attribute]
    return replace(scene, objects=(*scene.objects[:index], changed, *scene.objects[index + 1 :]))
