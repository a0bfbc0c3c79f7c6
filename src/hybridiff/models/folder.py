"""A pipeline on disk, known from its JSON files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ..arguments import MOST_PIXELS, SizeLimits, check_arguments
from ..denoiser import DENOISERS
from ..errors import UsageError
from ..utils.text import one_line
from . import tiny
from .outputs import made_by

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ModelFolder:
    """A pipeline on disk, in diffusers' folder format, known from its JSON files alone (no weights are read).

    Attributes:
        name: What the user called it.
        path: The folder that holds model_index.json.
    """

    name: str
    path: Path

    @cached_property
    def index(self) -> dict[str, Any]:
        """The pipeline's class and components."""
        return read_json(self.path / "model_index.json")

    @property
    def denoiser(self) -> str:
        """The name of the network that is called at every step, such as `unet` or `transformer`.

        Raises:
            UsageError: the pipeline has none.
        """
        for part in DENOISERS:
            if self.index.get(part, [None, None])[1] is not None:
                return part
        kind = self.index.get("_class_name", "pipeline")
        raise UsageError(f"{self.name} is a {kind} without a unet or transformer: there is no denoiser to parallelize")

    @property
    def scheduler_config(self) -> dict[str, Any]:
        """The configuration of the pipeline's own scheduler, class name included."""
        return read_json(self.path / "scheduler" / "scheduler_config.json")

    @property
    def sizes(self) -> SizeLimits:
        """Which heights and widths of images the model takes: multiples of the VAE's scale times the patch size."""
        vae = read_json(self.path / "vae" / "config.json") if (self.path / "vae").is_dir() else {}
        denoiser = read_json(self.path / self.denoiser / "config.json")
        scale = 2 ** (len(vae.get("block_out_channels", [1] * 4)) - 1)
        patch = denoiser.get("patch_size") or 1  # of films: frames, height and width
        multiple = int(scale * (patch[-1] if isinstance(patch, list) else patch))
        positions = denoiser.get("pos_embed_max_size")
        return SizeLimits(multiple, MOST_PIXELS if positions is None else positions * multiple, self.name)

    @cached_property
    def pipeline_class(self) -> type | None:
        """The pipeline's class, which takes seconds to import; None where diffusers has none of that name."""
        import diffusers

        found = getattr(diffusers, str(self.index.get("_class_name")), None)
        return found if isinstance(found, type) else None

    @cached_property
    def makes(self) -> str:
        """What the pipeline makes above all: `images`, `frames` or `audios`."""
        if self.name in tiny.EMBEDDED:
            return "images"
        return next(iter(made_by(self.pipeline_class)), "images")

    def check_call(self, arguments: Mapping[str, Any]) -> None:
        """Refuse what needs no network to be refused.

        Raises:
            UsageError: with the user's own argument, its value and what would do.
        """
        check_arguments(arguments, self.sizes)

    def for_device(self, device: str) -> Self:
        """This model, for a device such as `cpu` or `cuda:0`; bench models in full size refuse a CPU."""
        return self

    def read_networks(self, dtype: torch.dtype) -> dict[str, Any]:
        """The networks that lie elsewhere than in the folder: none."""
        return {}


def open_folder(name: str, path: Path) -> ModelFolder:
    """The pipeline in a folder.

    Raises:
        UsageError: there is none, or it has no denoiser.
    """
    if not (path / "model_index.json").is_file():
        raise UsageError(f"{name} is not a diffusers pipeline: there is no model_index.json in {path}")
    folder = ModelFolder(name, path)
    assert folder.denoiser  # raises for users where there is none
    return folder


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        UsageError: it cannot be read, or is none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path} does not hold a JSON object")
    return content
