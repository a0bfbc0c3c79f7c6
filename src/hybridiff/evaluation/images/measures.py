"""What is measured of pictures, as far as the weights and packages for it are at hand; and what is not, and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL.Image import Image

from ...errors import UsageError
from ...models.tiny import EMBEDDED
from ...models.tiny.checking import is_right
from ...utils.files import downloaded_by_torch
from ...utils.text import one_line
from .. import perceptual
from ..metrics import HIGHEST_PSNR, psnr, structural_similarity
from ..perceptual import Lpips
from . import inception
from .inception import InceptionFeatures
from .text_scores import CLIP, REWARD_FILES, ClipScore, ImageReward

T = TypeVar("T")

TO_SERIAL, TO_REFERENCE = "FID to serial", "FID to ground truth"
_INSTALL = "pip install 'hybridiff[eval]'"


@dataclass(frozen=True)
class Weights:
    """Weights from this disk, as the user named them; None: where torch and transformers keep what they download.

    Attributes:
        inception: See `InceptionFeatures`.
        lpips: See `Lpips`.
        clip: See `ClipScore`.
        image_reward: See `ImageReward`; has no place of its own.
    """

    inception: str | None = None
    lpips: str | None = None
    clip: str | None = None
    image_reward: str | None = None


@dataclass(frozen=True)
class Measure:
    """Something measured of one picture.

    Attributes:
        name: Of its entries in the rows.
        score: Takes the picture, that of one device, and the prompt; None where it does not apply.
        compares: Whether it takes the picture of one device into account.
        is_distance: Whether less is better.
    """

    name: str
    score: Callable[[Image, Image, str], float | None]
    compares: bool = False
    is_distance: bool = False


@dataclass
class Measures:
    """All that can be measured.

    Attributes:
        each: Of pictures one by one.
        features: Of sets of them, for the FID; None where that is skipped.
        skipped: What is not measured, and why.
        notes: Sentences about what is.
    """

    each: list[Measure] = field(default_factory=list)
    features: InceptionFeatures | None = None
    skipped: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def load(cls, model: str, weights: Weights, device: str) -> Measures:
        """What can be measured of a model's pictures.

        Args:
            model: What the user called it; captions of the embedded ones can be checked.
            weights: What the user named has to be there; what is not named may be missing.
            device: Where networks run.

        Raises:
            UsageError: what the user named is not there, or cannot be used.
        """
        found = cls()
        found._add_plain(model)
        lpips = found._load("LPIPS", "--lpips", weights.lpips, downloaded_by_torch(perceptual.WEIGHTS), Lpips)
        if lpips is not None:
            found.each.append(Measure("lpips", _of_pixels(lpips.to(device)), compares=True, is_distance=True))
        features = found._load(
            "FID", "--inception", weights.inception, downloaded_by_torch(inception.WEIGHTS), InceptionFeatures
        )
        found.features = None if features is None else features.to(device)
        clip = found._load("CLIP score", "--clip", weights.clip, CLIP, lambda name: ClipScore(str(name)))
        if clip is not None:
            clip.to(device)
            found.each.append(Measure("clip_score", lambda image, _, text: float(clip(image, text))))
        reward = found._load(
            "ImageReward", "--image-reward", weights.image_reward, None, lambda path: ImageReward(Path(path), device)
        )
        if reward is not None:
            found.each.append(Measure("image_reward", lambda image, _, text: reward(image, text)))
        return found

    def _add_plain(self, model: str) -> None:
        """Measures without weights."""
        self.each.append(Measure("psnr", lambda image, serial, _: min(HIGHEST_PSNR, psnr(image, serial)), True))
        if find_spec("torchmetrics") is None:
            self.skipped["SSIM"] = f"torchmetrics is not installed: {_INSTALL}"
        else:
            self.each.append(Measure("ssim", _of_pixels(structural_similarity), True))
        if model in EMBEDDED and find_spec("scipy") is None:
            self.skipped["right"] = f"scipy is not installed: {_INSTALL}"
        elif model in EMBEDDED:
            self.each.append(Measure("right", lambda image, _, text: is_right(np.asarray(image), text)))

    def _load(
        self, title: str, flag: str, given: str | None, default: str | Path | None, make: Callable[[Any], T]
    ) -> T | None:
        """What a network is made of; None where it is skipped."""
        source = default if given is None else Path(given).expanduser()
        if given is not None and isinstance(default, str) and not Path(given).expanduser().exists():
            source = given  # a hub id
        try:
            if source is None or (isinstance(source, Path) and not source.exists()):
                raise FileNotFoundError("its weights are not on this disk")
            return make(source)
        except ImportError as error:
            self.skipped[title] = f"{error.name or 'a package'} cannot be imported ({one_line(error, 80)})"
        except Exception as error:  # of files that hold something else, torch raises what it likes
            if given is not None:
                raise UsageError(f"{flag} {given} cannot be used: {one_line(error)}") from error
            is_missing = isinstance(error, OSError)
            reason = "no weights at hand" if is_missing else f"{source} cannot be used ({one_line(error, 80)})"
            self.skipped[title] = f"{reason}: give {flag} {_WANTED[flag]}"
        return None


_WANTED = {
    "--lpips": f"FILE, {perceptual.WEIGHTS} of torchvision",
    "--inception": f"FILE, {inception.WEIGHTS}",
    "--clip": "FOLDER_OR_ID of a CLIP model on this disk",
    "--image-reward": f"FOLDER with {' and '.join(REWARD_FILES)}",
}


def _of_pixels(compare: Callable[[Any, Any], float | None]) -> Callable[[Image, Image, str], float | None]:
    """How to compare images, from how to compare their pixels, (H, W, 3) from 0 to 1."""
    return lambda image, serial, _: compare(*(np.asarray(one, np.float32) / 255.0 for one in (image, serial)))
