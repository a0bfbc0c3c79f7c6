"""The files that hold what was made: images, films, sounds and latents."""

from __future__ import annotations

import json
import wave
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL.ExifTags import IFD, Base
from PIL.Image import Exif, Image, fromarray
from PIL.PngImagePlugin import PngInfo

from .. import __version__
from ..errors import UsageError

SUFFIXES = {"images": (".png", ".jpg", ".jpeg", ".webp"), "frames": (".mp4", ".gif"), "audios": (".wav",)}
LATENTS = ".safetensors"
STEMS = {"images": "image", "frames": "video", "audios": "audio"}
"""Of files, where the user names a folder."""
USUAL_FPS, USUAL_SAMPLING_RATE = 10, 16_000
"""Frames and samples a second, where neither user nor pipeline says."""


def check_video_writer() -> None:
    """See that films can be written.

    Raises:
        UsageError: the packages for it are missing.
    """
    if None in map(find_spec, ("imageio", "imageio_ffmpeg")):
        raise UsageError("an .mp4 needs imageio and imageio-ffmpeg: pip install 'hybridiff[video]', or name a .gif")


def as_picture(image: Any) -> Image:
    """An image of any form that pipelines know: PIL, an array (H, W, C) from 0 to 1, a tensor (C, H, W) from 0 to 1."""
    if isinstance(image, Image):
        return image
    if hasattr(image, "permute"):  # a tensor
        image = image.permute(1, 2, 0).float().numpy()
    array = np.asarray(image)
    if array.dtype != np.uint8:
        array = (array.clip(0, 1) * 255).round().astype(np.uint8)
    return fromarray(array.squeeze(-1) if array.shape[-1] == 1 else array)


def save(made: Any, path: Path, facts: dict[str, Any], rate: float) -> None:
    """Write an image, a film or a sound, by the suffix of the path.

    Args:
        made: An image, the frames of a film, or the samples of a sound.
        path: Where.
        facts: How it was made, for images, which carry it.
        rate: Frames or samples a second.
    """
    suffix = path.suffix.lower()
    if suffix in SUFFIXES["audios"]:
        _save_sound(made, path, rate)
    elif suffix in SUFFIXES["frames"]:
        _save_film([as_picture(frame) for frame in made], path, rate)
    else:
        save_image(as_picture(made), path, facts)


def save_image(image: Image, path: Path, facts: dict[str, Any]) -> None:
    """Write an image that carries how it was made: in PNG text, or as JSON in the EXIF comment of other formats."""
    texts = as_texts(facts)
    if path.suffix.lower() == ".png":
        info = PngInfo()
        for name, text in texts.items():
            info.add_text(name, text)
        image.save(path, pnginfo=info)
    else:
        exif = Exif()
        exif.get_ifd(IFD.Exif)[Base.UserComment] = b"ASCII\0\0\0" + json.dumps(texts).encode()
        image.save(path, exif=exif)


def save_latents(made: dict[str, Any], path: Path, facts: dict[str, Any]) -> None:
    """Write latents as a tensor `latents`, or one by the name of each kind, with how they were made as metadata."""
    from safetensors.torch import save_file

    tensors = {name if len(made) > 1 else "latents": latents for name, latents in made.items()}
    for name, latents in list(tensors.items()):
        if isinstance(latents, list):  # of unlike shapes, in some pipelines
            del tensors[name]
            tensors |= {f"{name}.{number}": one for number, one in enumerate(latents)}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata=as_texts(facts))


def as_texts(facts: dict[str, Any]) -> dict[str, str]:
    """How something was made, as texts by name."""
    texts = {name: fact if isinstance(fact, str) else json.dumps(fact) for name, fact in facts.items()}
    return texts | {"hybridiff": __version__}


def _save_film(frames: Sequence[Image], path: Path, rate: float) -> None:
    from diffusers.utils import export_to_video

    if path.suffix.lower() == ".gif":
        frames[0].save(path, save_all=True, append_images=frames[1:], duration=round(1000 / rate), loop=0)
    else:  # codecs want even sizes; others stay as they are
        export_to_video(list(frames), str(path), fps=rate, macro_block_size=2)


def _save_sound(samples: Any, path: Path, rate: float) -> None:
    waves = np.atleast_2d(np.asarray(samples.float() if hasattr(samples, "float") else samples))  # (channels, samples)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(len(waves))
        file.setsampwidth(2)
        file.setframerate(round(rate))
        file.writeframes((waves.T.clip(-1, 1) * 32767).round().astype("<i2").tobytes())
