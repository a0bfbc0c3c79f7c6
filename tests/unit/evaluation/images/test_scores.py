"""What was measured of a gallery: rows, tables, and the page."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from PIL import Image

from hybridiff.errors import UsageError
from hybridiff.evaluation.images.gallery import Gallery, PictureRecord
from hybridiff.evaluation.images.inception import InceptionFeatures, frechet_distance
from hybridiff.evaluation.images.measures import Measures, Weights
from hybridiff.evaluation.images.page import format_evaluation, format_page, score_table, short_table
from hybridiff.evaluation.images.scores import StrategyScores, find_pictures, score
from hybridiff.evaluation.metrics import psnr
from hybridiff.evaluation.strategy_spec import parse_strategies
from hybridiff.utils.prompts import Prompt
from support.small_measures import save_alexnet, save_clip, save_inception

PROMPTS = [Prompt("a red ring", 0), Prompt('<script>alert("&")</script>', 1), Prompt("a cross", 2)]
CONFIGS = parse_strategies("serial,hybrid:fidelity=50", 2)
HYBRID = "hybrid:fidelity=50"
NOTES = ["calibrated for another"]


def pixels(seed: int, change: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 200, (64, 64, 3), dtype=np.uint8) + np.uint8(change)


def draw(folder: Path, count: int = 3) -> Gallery:
    """Images of noise; those of the second strategy are brighter, the later the more."""
    gallery = Gallery.open(folder, {"model": "m"}, PROMPTS[:count], CONFIGS)
    for number, prompt in enumerate(gallery.prompts):
        image, other = (Image.fromarray(pixels(number, change)) for change in (0, 4 * number))
        gallery.add("serial", number, image, PictureRecord(prompt.prompt, number, "ffff", None))
        gallery.add(
            HYBRID, number, other, PictureRecord(prompt.prompt, number, "ff" + "c" * number + "f", 2.0 + number, NOTES)
        )
    return gallery


def content_of(gallery: Gallery, measures: Measures, scores: list[StrategyScores]) -> dict[str, Any]:
    rows = [one.to_dict(measures.each) for one in scores]
    further = {"skipped": measures.skipped, "notes": measures.notes, "command": "hybridiff evaluate <x>"}
    return {"run": {"model": "m"}, "rows": rows, **further}


def test_rows_hold_mean_median_and_worst_tenth(tmp_path: Path) -> None:
    measures = Measures.load("some/model", Weights(), "cpu")
    told: list[tuple[str, int, int]] = []
    scores = score(draw(tmp_path), measures, on_progress=lambda *progress: told.append(progress))
    serial, hybrid = (one.to_dict(measures.each) for one in scores)
    expected = [100.0, *(psnr(pixels(seed, 4 * seed), pixels(seed)) for seed in (1, 2))]
    assert serial == {"strategy": "serial", "images": 3, "notes": [], "full_steps": 4.0}
    assert hybrid["psnr"] == pytest.approx(np.mean(expected), abs=1e-4)
    assert hybrid["psnr_median"] == pytest.approx(expected[1], abs=1e-4)
    assert hybrid["psnr_worst_tenth"] == pytest.approx(expected[2], abs=1e-4)
    assert hybrid["ideal_speedup"] == 2.769, "2, 3 and 4, one after the other"
    assert (hybrid["full_steps"], hybrid["images"]) == (3.0, 3)
    assert told[-1] == (f"measuring {HYBRID}", 6, 6)


def test_every_measure_joins_where_its_network_is_at_hand(tmp_path: Path) -> None:
    truth = tmp_path / "truth" / "deep"
    truth.mkdir(parents=True)
    for seed in range(4):
        Image.fromarray(pixels(10 + seed)).convert("L" if seed else "RGB").save(
            truth / f"{seed}.{'png' if seed else 'jpg'}"
        )
    network = save_inception(tmp_path / "network.pt")
    paths = {"inception": network, "lpips": save_alexnet(tmp_path / "a.pth"), "clip": save_clip(tmp_path / "clip")}
    measures = Measures.load("some/model", Weights(**{name: str(path) for name, path in paths.items()}), "cpu")
    gallery, told = draw(tmp_path / "out"), []
    reference = find_pictures(str(tmp_path / "truth"))
    scores = score(gallery, measures, reference, lambda *progress: told.append(progress))
    assert told[-1] == (f"measuring {HYBRID}", 16, 16)
    serial, hybrid = (one.to_dict(measures.each) for one in scores)
    assert serial.keys() == {
        "strategy", "images", "notes", "clip_score", "clip_score_median", "clip_score_worst_tenth", "fid_reference",
        "full_steps",
    }  # fmt: skip
    assert hybrid["lpips_worst_tenth"] > hybrid["lpips_median"] > 0
    features = InceptionFeatures(network)
    sets = [
        np.stack([features(gallery.read(strategy, number)) for number in range(3)]) for strategy in ("serial", HYBRID)
    ]
    expected = frechet_distance(*(torch.from_numpy(one) for one in sets))
    assert hybrid["fid_serial"] == pytest.approx(expected, abs=1e-4)
    assert serial["fid_reference"] != hybrid["fid_reference"]
    assert measures.skipped.keys() == {"ImageReward"}
    assert measures.notes == ["FID of 3 images by 6 features says little; thousands are usual"]


def test_what_the_fid_lacks_is_named(tmp_path: Path) -> None:
    weights = Weights(inception=str(save_inception(tmp_path / "network.pt")))
    measures = Measures.load("some/model", weights, "cpu")
    score(draw(tmp_path / "one", count=1), measures)
    assert measures.skipped["FID"] == "it takes two images or more"
    measures = Measures.load("some/model", weights, "cpu")
    (_, hybrid) = score(draw(tmp_path / "more"), measures)
    assert hybrid.distances.keys() == {"fid_serial"}
    assert measures.skipped["FID to ground truth"] == "there is no ground truth: give --reference FOLDER"


def test_a_ground_truth_of_less_than_two_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"--reference {tmp_path} holds 0 images; FID needs two or more"):
        find_pictures(str(tmp_path))
    with pytest.raises(UsageError, match="--reference /nowhere is no folder"):
        find_pictures("/nowhere")


def test_tables_name_what_is_skipped(tmp_path: Path) -> None:
    measures = Measures.load("some/model", Weights(), "cpu")
    gallery = draw(tmp_path)
    content = content_of(gallery, measures, score(gallery, measures))
    head, serial, hybrid = score_table(content["rows"])
    assert dict(zip(head, serial, strict=True))["PSNR"] == "-"
    assert dict(zip(head, hybrid, strict=True))["PSNR"].endswith(" dB")
    assert dict(zip(head, hybrid, strict=True))["CLIP score"] == "-"
    short = ("strategy", "images", "ideal speed-up", "full steps", "PSNR", "its worst tenth", "SSIM")
    assert short_table(content["rows"])[0] == short
    text = format_evaluation(content)
    assert "| CLIP score |" in text
    assert "- CLIP score skipped: no weights at hand" in text
    assert "    hybridiff evaluate <x>\n" in text
    assert text.endswith(f"\n- {HYBRID}: {NOTES[0]}\n"), "once, though all its images say so"


class Reader(HTMLParser):
    """What a page shows, which files it links, and that its elements are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.opened: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.opened == []

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img", "br", "input"):
            self.opened.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.opened.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_shows_every_image_and_needs_no_network(tmp_path: Path) -> None:
    measures = Measures.load("some/model", Weights(), "cpu")
    gallery = draw(tmp_path)
    scores = score(gallery, measures)
    text = "".join(format_page(content_of(gallery, measures, scores), gallery, scores))
    page = Reader(text)
    assert page.tags.count("section") == 3
    assert page.tags.count("figure") == 6
    assert page.tags.count("img") == 3 * (1 + 1 + 2)  # serial, hybrid, and two for their difference
    assert text.count('loading="lazy"') == 12
    assert all((tmp_path / unquote(link)).is_file() for link in page.links)
    assert "://" not in text
    assert "script" not in page.tags
    assert PROMPTS[1].prompt in page.text
    assert "ffccf" in page.text
    assert "#0072b2 40% 80%" in text  # its cached steps, as a band
    assert "CLIP score skipped: no weights at hand" in page.text
    assert "PSNR 100.0 dB" in page.text
