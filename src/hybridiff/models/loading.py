"""Load a pipeline by the name of an embedded model, a local folder or a hub id."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..utils.names import require_known
from ..utils.text import one_line
from . import tiny
from .bench import BENCH, open_bench
from .compiling import compile_denoisers
from .controlnets import controlled_class, load_controlnets
from .folder import ModelFolder, open_folder
from .lazy import lazy_encoders
from .loras import Lora, put_loras
from .offload import check_offload, place
from .schedulers import build_scheduler, check_scheduler
from .single_file import find_single_file
from .sources import SUFFIX, asking_hub, require_hub_id

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "float16", "bfloat16")
TASKS = {
    "text-to-image": "AutoPipelineForText2Image",
    "image-to-image": "AutoPipelineForImage2Image",
    "inpainting": "AutoPipelineForInpainting",
}


def find_model(
    name_or_path: str | os.PathLike[str] | ModelFolder, variant: str | None = None, model_config: str | None = None
) -> ModelFolder:
    """Find a pipeline, downloading it where the name is a hub id.

    Args:
        name_or_path: `tiny-sdxl`, `tiny-sd3` or a bench model, a local folder, a hub id such as
            `stabilityai/stable-diffusion-xl-base-1.0`, or a checkpoint: one .safetensors file, on this disk or on
            the hub; or what was found already.
        variant: Suffix of the weight files to download, such as `fp16`.
        model_config: Of a checkpoint; see `single_file.find_single_file`.

    Raises:
        UsageError: there is no such model, or no pipeline in the folder; the message says what was tried.
    """
    if isinstance(name_or_path, ModelFolder):
        return name_or_path
    name = str(name_or_path)
    if name.endswith(SUFFIX) and not Path(name).expanduser().is_dir():
        return find_single_file(name, variant, model_config)
    if model_config is not None:
        raise UsageError(
            f"{name} is no {SUFFIX} file: it has a configuration of its own, so leave out the model config"
        )
    if name in BENCH:
        return open_bench(name)
    path = tiny.folder(name) if name in tiny.EMBEDDED else Path(name).expanduser()
    if path.is_file():
        raise UsageError(f"{name} is a file; a folder in diffusers' format or a {SUFFIX} file is needed")
    if path.exists():
        return open_folder(name, path)
    if name in tiny.EMBEDDED:
        raise UsageError(
            f"the embedded model {name} is missing from this installation ({path}); install hybridiff again"
        )
    return open_folder(name, _download(name, variant))


def load_pipeline(
    name_or_path: str | os.PathLike[str] | ModelFolder,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype | None = None,
    *,
    scheduler: str | None = None,
    task: str = "text-to-image",
    variant: str | None = None,
    model_config: str | None = None,
    loras: Sequence[Lora] = (),
    controlnets: Sequence[str] = (),
    encodes: bool = True,
    offload: str = "none",
    compile: str = "none",
) -> Any:
    """Load a stock diffusers pipeline.

    Args:
        name_or_path: See `find_model`.
        device: Where the networks run.
        dtype: Of the networks. None takes float32 on the CPU, on CUDA the half type of the model's family.
        scheduler: A name from `schedulers.SCHEDULERS`; None keeps the pipeline's own.
        task: `text-to-image`, `image-to-image` or `inpainting`.
        variant: See `find_model`.
        model_config: Likewise.
        loras: See `loras.find_loras`.
        controlnets: Folders of ControlNets.
        encodes: False leaves encoders of text and images on the disk, see `lazy`: for ranks other than 0.
        offload: See `offload.OFFLOADS`.
        compile: See `compiling.COMPILES`.

    Raises:
        UsageError: the model, dtype, scheduler or task is unknown, the pipeline not complete, or a LoRA does not fit.
    """
    require_known("task", task, TASKS)
    check_offload(offload, str(device), compile)
    folder = find_model(name_or_path, variant, model_config).for_device(str(device))
    options = {"dtype": choose_dtype(dtype, str(device), folder.denoiser), "variant": variant}
    pipe = _load(folder, task, scheduler, controlnets, encodes, loras, **options)
    return compile_denoisers(place(pipe, str(device), offload), compile)


def _load(
    folder: ModelFolder,
    task: str,
    scheduler: str | None,
    controlnets: Sequence[str],
    encodes: bool,
    loras: Sequence[Lora],
    **options: Any,
) -> Any:
    if scheduler is not None:
        check_scheduler(scheduler, folder.scheduler_config)
    networks = {} if encodes else lazy_encoders(folder, **options)
    networks |= folder.read_networks(options["dtype"]) | load_controlnets(controlnets, options["dtype"])
    pipe = _read_pipeline(folder, task, **options, **networks)
    if folder.name not in tiny.EMBEDDED:  # else known by the folder of the hub's cache, or of a checkpoint's settings
        pipe.register_to_config(_name_or_path=folder.name)
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


def _download(name: str, variant: str | None) -> Path:
    embedded = ", ".join((*tiny.EMBEDDED, *BENCH))
    missing = f"unknown model {name!r}: not an embedded model ({embedded}), no such folder"
    require_hub_id(missing, name)
    from diffusers import DiffusionPipeline

    with asking_hub(f"{missing}, and the hub gave no pipeline of that id"):
        return Path(DiffusionPipeline.download(name, variant=variant))


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
        return loader.from_pretrained(folder.path, local_files_only=True, **(absent | options))
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot load a pipeline from {folder.path}: {one_line(error)}") from error
