"""Images of several strategies on disk: generated once, never half, never mixed with others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from hybridiff import ParallelConfig
from hybridiff.errors import UsageError
from hybridiff.evaluation.images import drawing
from hybridiff.evaluation.images.drawing import draw_missing, each_picture
from hybridiff.evaluation.images.gallery import SETTINGS, Gallery, PictureRecord
from hybridiff.evaluation.strategy_spec import parse_strategies
from hybridiff.report.report import RunReport
from hybridiff.utils.prompts import Prompt

RUN = {"model": "tiny-sdxl", "num_inference_steps": 4}
PROMPTS = each_picture([Prompt("a ring"), Prompt('a "cross" <b>', seed=7, negative_prompt="blur")])
CONFIGS = parse_strategies("serial,hybrid:fidelity=50", 2)
NAMES = tuple(CONFIGS)


class FakeEngine:
    """Answers with an image that its config, prompt and seed decide."""

    started: ClassVar[list[str]] = []
    asked: ClassVar[list[tuple[str, int, dict[str, Any]]]] = []

    def __init__(self, model: str, config: ParallelConfig, **options: Any) -> None:
        self.config = config
        self.started.append(config.strategy)

    def __enter__(self) -> FakeEngine:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def generate(self, prompt: str, *, seed: int, **arguments: Any) -> Any:
        self.asked.append((prompt, seed, arguments))
        report = RunReport(self.config.strategy, 2, notes=["said"])
        return SimpleNamespace(images=[picture(seed)], seed=seed, report=report)


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8))


@pytest.fixture
def draw(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[str, int, int]]]:
    """Draws what a gallery lacks with the fake engine; stops after so many images."""
    monkeypatch.setattr(drawing, "Engine", FakeEngine)

    def run(gallery: Gallery, stop_after: int | None = None) -> list[tuple[str, int, int]]:
        FakeEngine.started, FakeEngine.asked, told = [], [], []

        def tell(what: str, done: int, total: int) -> None:
            told.append((what, done, total))
            if done == stop_after:
                raise KeyboardInterrupt

        draw_missing(gallery, "model", {"negative_prompt": "all"}, tell)
        return told

    return run


def open_gallery(folder: Path, **others: Any) -> Gallery:
    return Gallery.open(folder, **({"run": RUN, "prompts": PROMPTS, "configs": CONFIGS} | others))


def test_each_image_has_a_seed() -> None:
    prompts = [Prompt("a"), Prompt("b", seed=7), Prompt("c", seed=2**64 - 1)]
    assert [prompt.seed for prompt in each_picture(prompts)] == [0, 7, 2**64 - 1]
    assert [(one.prompt, one.seed) for one in each_picture(prompts, 2)] == [
        ("a", 0), ("a", 1), ("b", 7), ("b", 8), ("c", 2**64 - 1), ("c", 0),
    ]  # fmt: skip


def test_a_gallery_that_was_stopped_goes_on_where_it_was(tmp_path: Path, draw: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        draw(open_gallery(tmp_path), stop_after=3)
    assert len(list(tmp_path.glob("*/*.png"))) == 3
    gallery = open_gallery(tmp_path)
    assert draw(gallery) == [(NAMES[1], 0, 1), (NAMES[1], 1, 1)]
    assert FakeEngine.started == ["hybrid"]
    assert FakeEngine.asked == [(PROMPTS[1].prompt, 7, {"negative_prompt": "blur"})]
    assert draw(open_gallery(tmp_path)) == []
    assert FakeEngine.started == []
    for name in NAMES:
        assert np.array_equal(gallery.read(name, 1), picture(7))
        assert gallery.find(name, 1) == PictureRecord(PROMPTS[1].prompt, 7, "", None, ["said"])
    assert (tmp_path / "hybrid-fidelity=50" / "00002.png").is_file()
    assert not list(tmp_path.rglob("*.part"))


def test_more_prompts_and_strategies_join(tmp_path: Path, draw: Any) -> None:
    draw(open_gallery(tmp_path, prompts=PROMPTS[:1]))
    assert [told[1:] for told in draw(open_gallery(tmp_path))] == [(0, 2), (1, 2), (1, 2), (2, 2)]
    assert draw(open_gallery(tmp_path, prompts=PROMPTS[:1])) == []
    draw(open_gallery(tmp_path, configs=parse_strategies("serial,cfg", 2)))
    assert FakeEngine.started == ["cfg"]
    with pytest.raises(UsageError, match="fidelity of hybrid-fidelity=50"):  # it still knows of all
        open_gallery(tmp_path, configs={NAMES[1]: ParallelConfig("hybrid", 2, fidelity=40)})


@pytest.mark.parametrize(
    ("others", "what"),
    [
        ({"run": RUN | {"guidance_scale": 3.0}}, "guidance_scale"),
        ({"run": {"model": "tiny-sdxl"}}, "num_inference_steps"),
        ({"prompts": [replace(PROMPTS[0], seed=5)]}, "prompts or seeds"),
        ({"configs": parse_strategies("serial,hybrid:fidelity=50", 4)}, "devices of hybrid-fidelity=50"),
    ],
)
def test_other_images_are_not_mixed_with_these(tmp_path: Path, draw: Any, others: dict[str, Any], what: str) -> None:
    draw(open_gallery(tmp_path))
    with pytest.raises(UsageError, match=f"holds other images, with other {what}; use another --output, or --fresh"):
        open_gallery(tmp_path, **others)
    fresh = open_gallery(tmp_path, **others, fresh=True)
    assert len(fresh.missing(NAMES[0])) == len(fresh.prompts)


def test_a_calibration_counts_by_what_it_says(tmp_path: Path) -> None:
    from hybridiff.models import tiny

    source = (tiny.folder("tiny-sdxl") / "calibration.json").read_text()
    path = tmp_path / "calibration.json"
    path.write_text(source)
    configs = {"hybrid": ParallelConfig("hybrid", 2, calibration=str(path))}
    open_gallery(tmp_path, configs=configs)
    path.write_text(source.replace('"model"', '\n"model"'))
    open_gallery(tmp_path, configs=configs)
    path.write_text(source.replace("tiny-sdxl", "tiny-sd3"))
    with pytest.raises(UsageError, match="calibration of hybrid"):
        open_gallery(tmp_path, configs=configs)


def test_fresh_deletes_nothing_but_our_own(tmp_path: Path, draw: Any) -> None:
    draw(open_gallery(tmp_path))
    theirs = tmp_path / "holiday" / "00001.png"
    theirs.parent.mkdir()
    picture(0).save(theirs)
    open_gallery(tmp_path, fresh=True)
    assert [path.relative_to(tmp_path) for path in tmp_path.rglob("*.png")] == [Path("holiday/00001.png")]


@pytest.mark.parametrize("content", ["{", "[]", '{"run": {}, "strategies": []}'])
def test_settings_that_cannot_be_read_are_named(tmp_path: Path, content: str) -> None:
    (tmp_path / SETTINGS).write_text(content)
    with pytest.raises(UsageError, match=f"{SETTINGS} .* give another --output, or --fresh to overwrite it"):
        open_gallery(tmp_path)
    open_gallery(tmp_path, fresh=True)


def test_images_without_settings_are_refused(tmp_path: Path, draw: Any) -> None:
    draw(open_gallery(tmp_path))
    (tmp_path / SETTINGS).unlink()
    with pytest.raises(UsageError, match="holds images, but no evaluation"):
        open_gallery(tmp_path)


def test_an_image_that_cannot_be_read_is_generated_again(tmp_path: Path, draw: Any) -> None:
    gallery = open_gallery(tmp_path)
    draw(gallery)
    path = tmp_path / gallery.link("serial", 0)
    path.write_bytes(path.read_bytes()[:20])
    assert open_gallery(tmp_path).missing("serial") == [0]


def test_two_strategies_never_share_a_folder(tmp_path: Path) -> None:
    configs = parse_strategies("hybrid:calibration=a/b,hybrid:calibration=a:b", 2)
    with pytest.raises(UsageError, match="two strategies would share a folder"):
        open_gallery(tmp_path, configs=configs)
