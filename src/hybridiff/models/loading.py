"""Load a pipeline by the name of an embedded model, a local folder or a hub id."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..arguments import MOST_PIXELS, SizeLimits, check_arguments
from ..errors import UsageError
from ..utils.names import require_known
from ..utils.text import one_line
from . import tiny
from .controlnets import controlled_class, load_controlnets
from .loras import Lora, put_loras
from .outputs import made_by
from .schedulers import build_scheduler, check_scheduler

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "float16", "bfloat16")
TASKS = {
    "text-to-image": "AutoPipelineForText2Image",
    "image-to-image": "AutoPipelineForImage2Image",
    "inpainting": "AutoPipelineForInpainting",
}
DENOISERS = ("unet", "transformer")


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
        return _read_json(self.path / "model_index.json")

    @property
    def denoiser(self) -> str:
        """`unet` or `transformer`.

        Raises:
            UsageError: the pipeline has neither.
        """
        for part in DENOISERS:
            if self.index.get(part, [None, None])[1] is not None:
                return part
        raise UsageError(
            f"{self.name} is a {self.index.get('_class_name', 'pipeline')} without a {' or '.join(DENOISERS)}: "
            "there is no denoiser to parallelize"
        )

    @property
    def scheduler_config(self) -> dict[str, Any]:
        """The configuration of the pipeline's own scheduler, class name included."""
        return _read_json(self.path / "scheduler" / "scheduler_config.json")

    @property
    def sizes(self) -> SizeLimits:
        """Which heights and widths of images the model takes: multiples of the VAE's scale times the patch size."""
        vae = _read_json(self.path / "vae" / "config.json") if (self.path / "vae").is_dir() else {}
        denoiser = _read_json(self.path / self.denoiser / "config.json")
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


def find_model(name_or_path: str | os.PathLike[str], variant: str | None = None) -> ModelFolder:
    """Find a pipeline's folder, downloading it where the name is a hub id.

    Args:
        name_or_path: `tiny-sdxl` or `tiny-sd3`, a local folder, or a hub id such as
            `stabilityai/stable-diffusion-xl-base-1.0`.
        variant: Suffix of the weight files to download, such as `fp16`.

    Raises:
        UsageError: there is no such model, or no pipeline in the folder; the message says what was tried.
    """
    name = str(name_or_path)
    path = tiny.folder(name) if name in tiny.EMBEDDED else Path(name).expanduser()
    if path.exists():
        return _folder(name, path)
    if name in tiny.EMBEDDED:
        raise UsageError(
            f"the embedded model {name} is missing from this installation ({path}); install hybridiff again"
        )
    return _folder(name, _download(name, variant))


def load_pipeline(
    name_or_path: str | os.PathLike[str],
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype | None = None,
    *,
    scheduler: str | None = None,
    task: str = "text-to-image",
    variant: str | None = None,
    loras: Sequence[Lora] = (),
    controlnets: Sequence[str] = (),
) -> Any:
    """Load a stock diffusers pipeline.

    Args:
        name_or_path: See `find_model`.
        device: Where the networks go.
        dtype: Of the networks. None takes float32 on the CPU, on CUDA the half type of the model's family.
        scheduler: A name from `schedulers.SCHEDULERS`; None keeps the pipeline's own.
        task: `text-to-image`, `image-to-image` or `inpainting`.
        variant: Suffix of the weight files, such as `fp16`.
        loras: See `loras.find_loras`.
        controlnets: Folders of ControlNets.

    Raises:
        UsageError: the model, dtype, scheduler or task is unknown, the folder holds no complete pipeline, or a LoRA
            does not fit it.
    """
    require_known("task", task, TASKS)
    folder = find_model(name_or_path, variant)
    chosen = choose_dtype(dtype, str(device), folder.denoiser)
    if scheduler is not None:
        check_scheduler(scheduler, folder.scheduler_config)
    options = {"controlnet": load_controlnets(controlnets, chosen)} if controlnets else {}
    pipe = _read_pipeline(folder, task, dtype=chosen, variant=variant, **options).to(device)
    if scheduler is not None:
        pipe.scheduler = build_scheduler(scheduler, pipe.scheduler)
    if loras:
        put_loras(pipe, loras)
    return pipe


def choose_dtype(dtype: str | torch.dtype | None, device: str, denoiser: str) -> torch.dtype:
    """The type to load the networks in; see `load_pipeline`.

    Raises:
        UsageError: an unknown name.
    """
    import torch

    if dtype is None:
        dtype = _cuda_dtype(denoiser) if device.startswith("cuda") else "float32"
    if isinstance(dtype, str):
        require_known("dtype", dtype, DTYPES)
        chosen: torch.dtype = getattr(torch, dtype)
        return chosen
    return dtype


def _cuda_dtype(denoiser: str) -> str:
    from ..denoiser.adapters import ADAPTERS

    return next((adapter.cuda_dtype for adapter in ADAPTERS if adapter.attribute == denoiser), "bfloat16")


def _folder(name: str, path: Path) -> ModelFolder:
    if path.is_file():
        raise UsageError(f"{name} is a file; a folder in diffusers' format (with model_index.json) is needed")
    if not (path / "model_index.json").is_file():
        raise UsageError(f"{name} is not a diffusers pipeline: there is no model_index.json in {path}")
    folder = ModelFolder(name, path)
    assert folder.denoiser in DENOISERS  # raises for users where there is none
    return folder


def _download(name: str, variant: str | None) -> Path:
    embedded = ", ".join(tiny.EMBEDDED)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UsageError(
            f"unknown model {name!r}: not an embedded model ({embedded}), no such folder, and not a hub id (owner/name)"
        )
    from diffusers import DiffusionPipeline

    try:
        return Path(DiffusionPipeline.download(name, variant=variant))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"unknown model {name!r}: not an embedded model ({embedded}), no such folder, and the hub gave no pipeline "
            f"of that id ({one_line(error).split(' (')[0]})"
        ) from error


def _read_pipeline(folder: ModelFolder, task: str, **options: Any) -> Any:
    import diffusers

    loader: Any = getattr(diffusers, TASKS[task])
    if "controlnet" in options:
        loader = controlled_class(folder.pipeline_class, task)
    elif task == "text-to-image":  # any pipeline class, also those that AutoPipeline does not list
        loader = diffusers.DiffusionPipeline
    # An SD3 saved without its T5 encoder can only be loaded by saying once more that there is none.
    absent = {part: None for part, value in folder.index.items() if value == [None, None]}
    try:
        return loader.from_pretrained(folder.path, local_files_only=True, **absent, **options)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot load a pipeline from {folder.path}: {one_line(error)}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path} does not hold a JSON object")
    return content
