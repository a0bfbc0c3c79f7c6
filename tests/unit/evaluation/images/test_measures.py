"""What is measured of images: each measure against a second way to say it, and what is skipped by name."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import linalg

from hybridiff.errors import UsageError
from hybridiff.evaluation.images.inception import InceptionFeatures, frechet_distance
from hybridiff.evaluation.images.measures import Measures, Weights
from hybridiff.evaluation.images.text_scores import ClipScore
from hybridiff.evaluation.perceptual import Lpips
from support.small_measures import FEATURES, save_alexnet, save_clip, save_image_reward, save_inception


def noise(seed: int, side: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


@pytest.fixture(autouse=True)
def no_downloads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As on a machine that has downloaded nothing."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))


def names(measures: Measures) -> list[str]:
    return [measure.name for measure in measures.each]


def test_what_has_no_weights_is_named() -> None:
    found = Measures.load("some/model", Weights(), "cpu")
    assert names(found) == ["psnr", "ssim"]
    assert found.features is None
    assert found.skipped == {
        "LPIPS": "no weights at hand: give --lpips FILE, alexnet-owt-7be5be79.pth of torchvision",
        "FID": "no weights at hand: give --inception FILE, inception-2015-12-05.pt",
        "CLIP score": "no weights at hand: give --clip FOLDER_OR_ID of a CLIP model on this disk",
        "ImageReward": "no weights at hand: give --image-reward FOLDER with ImageReward.pt and med_config.json",
    }


def test_what_needs_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("hybridiff.evaluation.images.measures.find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "ImageReward", None)  # importing it fails
    reward = save_image_reward(tmp_path / "reward")
    found = Measures.load("tiny-sdxl", Weights(image_reward=str(reward)), "cpu")
    assert names(found) == ["psnr"]
    assert found.skipped["SSIM"] == "torchmetrics is not installed: pip install 'hybridiff[eval]'"
    assert found.skipped["right"] == "scipy is not installed: pip install 'hybridiff[eval]'"
    assert found.skipped["ImageReward"].startswith("ImageReward cannot be imported")


def test_captions_are_checked_for_the_embedded_models() -> None:
    (right,) = [one for one in Measures.load("tiny-sdxl", Weights(), "cpu").each if one.name == "right"]
    assert right.score(noise(0), noise(0), "a large red ring on a white background") is False
    assert right.score(noise(0), noise(0), "something else") is None


def test_weights_that_torch_has_downloaded_are_found(tmp_path: Path) -> None:
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    save_alexnet(cache / "alexnet-owt-7be5be79.pth")
    (cache / "inception-2015-12-05.pt").write_text("half of it")
    found = Measures.load("some/model", Weights(), "cpu")
    assert names(found) == ["psnr", "ssim", "lpips"]
    assert found.skipped["FID"].startswith(f"{cache}/inception-2015-12-05.pt cannot be used (")


@pytest.mark.parametrize("name", ["inception", "lpips", "clip", "image_reward"])
@pytest.mark.parametrize("is_there", [True, False])
def test_weights_that_the_user_named_have_to_do(
    name: str, is_there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(path: str, **options: Any) -> None:
        raise FileNotFoundError(path)

    monkeypatch.setitem(sys.modules, "ImageReward", SimpleNamespace(load=load))
    path = tmp_path / "weights"
    if is_there:
        path.write_text("something else")
    with pytest.raises(UsageError, match=f"--{name.replace('_', '-')} {path} cannot be used: "):
        Measures.load("some/model", Weights(**{name: str(path)}), "cpu")


def test_lpips_is_that_of_torchmetrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchmetrics.functional.image import lpips as theirs

    path = save_alexnet(tmp_path / "alexnet.pth")
    ours = Lpips(path)
    monkeypatch.setattr(theirs, "_get_tv_model_features", lambda net, pretrained: ours.features)
    oracle = theirs._LPIPS(net="alex")
    images = [torch.from_numpy(np.asarray(noise(seed), np.float32) / 255) for seed in (0, 1)]
    expected = oracle(*(image.permute(2, 0, 1)[None] for image in images), normalize=True)
    assert ours(*images) == pytest.approx(expected.item(), rel=1e-5)
    assert ours(images[0], images[0]) == 0.0
    (measure,) = [
        one for one in Measures.load("some/model", Weights(lpips=str(path)), "cpu").each if one.name == "lpips"
    ]
    assert measure.is_distance
    assert measure.score(noise(0), noise(1), "") == pytest.approx(ours(*images))


def test_features_are_those_of_the_network_and_not_its_logits(tmp_path: Path) -> None:
    features = InceptionFeatures(save_inception(tmp_path / "network.pt"))
    assert features.size == FEATURES
    gray = features(Image.new("RGB", (20, 30), (51, 102, 255)))
    assert gray.tolist() == pytest.approx([0.2, 0.4, 1.0, 0.04, 0.16, 1.0], rel=1e-5)


def test_frechet_distance_is_that_of_normal_distributions() -> None:
    generator = torch.Generator().manual_seed(0)
    ours = torch.randn(40, 5, generator=generator, dtype=torch.float64)
    theirs = 0.3 + 1.7 * torch.randn(30, 5, generator=generator, dtype=torch.float64)
    means = [one.mean(0).numpy() for one in (ours, theirs)]
    spreads = [one.T.cov().numpy() for one in (ours, theirs)]
    root = linalg.sqrtm(spreads[0] @ spreads[1]).real
    expected = ((means[0] - means[1]) ** 2).sum() + np.trace(spreads[0] + spreads[1] - 2 * root)
    assert frechet_distance(ours, theirs) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(ours, ours) == pytest.approx(0.0, abs=1e-9)


def test_clip_score_is_the_cosine_of_image_and_text(tmp_path: Path) -> None:
    folder = save_clip(tmp_path / "clip")
    scorer, image, text = ClipScore(str(folder)), noise(0), "a red ring " * 20  # longer than the network takes
    inputs = scorer._processor(text=[text], images=[image], return_tensors="pt", truncation=True, max_length=12)
    with torch.no_grad():
        vision = scorer.network.vision_model(inputs["pixel_values"]).pooler_output
        words = scorer.network.text_model(inputs["input_ids"], inputs["attention_mask"]).pooler_output
        pair = scorer.network.visual_projection(vision)[0], scorer.network.text_projection(words)[0]
    expected = 100 * torch.nn.functional.cosine_similarity(*pair, dim=0).item()
    assert scorer(image, text) == pytest.approx(max(0.0, expected), rel=1e-4)
    found = Measures.load("some/model", Weights(clip=str(folder)), "cpu")
    assert names(found)[-1] == "clip_score"
    assert found.each[-1].score(image, image, text) == pytest.approx(max(0.0, expected), rel=1e-4)


def test_image_reward_is_asked_of_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load(weights: str, device: str, med_config: str) -> Any:
        asked.extend([weights, device, med_config])
        return SimpleNamespace(score=lambda prompt, image: len(prompt) / image.width)

    monkeypatch.setitem(sys.modules, "ImageReward", SimpleNamespace(load=load))
    folder = save_image_reward(tmp_path / "reward")
    found = Measures.load("some/model", Weights(image_reward=str(folder)), "cpu")
    assert asked == [str(folder / "ImageReward.pt"), "cpu", str(folder / "med_config.json")]
    assert found.each[-1].score(noise(0), noise(0), "a" * 32) == 0.5
    assert "ImageReward" not in found.skipped
