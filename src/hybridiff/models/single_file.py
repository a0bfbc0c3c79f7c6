"""Checkpoints: a pipeline's networks in one file, as model sites offer them, in the layout of their first authors."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..denoiser import DENOISERS
from ..errors import UsageError
from ..utils.text import one_line
from .folder import ModelFolder, open_folder
from .sources import SUFFIX, asking_hub, find_path

if TYPE_CHECKING:
    import torch

CONFIGS = ("*.json", "*.jinja", "*.model", "*.txt")
"""What a repository has beside weights."""

LIBRARIES = ("diffusers", "transformers")
CHECKER = "safety_checker"

ENCODERS = {
    "CLIPTextModel": "create_diffusers_clip_model_from_ldm",
    "CLIPTextModelWithProjection": "create_diffusers_clip_model_from_ldm",
    "T5EncoderModel": "create_diffusers_t5_model_from_checkpoint",
}
"""What converts the classes that are not of diffusers."""

_CLIP = ("cond_stage_model.", "conditioner.embedders.", "text_encoders.clip_")
PREFIXES: dict[str, tuple[str, ...]] = {
    "vae": ("first_stage_model.", "vae."),
    "audio_vae": ("audio_vae.",),
    "CLIPTextModel": _CLIP,
    "CLIPTextModelWithProjection": _CLIP,
    "T5EncoderModel": ("text_encoders.t5xxl.",),
}
"""How the names of weights begin in checkpoints, by component or else by its class; all others are of the denoiser."""


@dataclass(frozen=True)
class SingleFile(ModelFolder):
    """A pipeline with networks in one file; what that does not hold lies in the folder, other networks included.

    Attributes:
        file: The checkpoint.
        held: The networks that it holds.
    """

    file: Path
    held: tuple[str, ...]

    @property
    def missing(self) -> list[str]:
        """The networks that lie neither in the file nor in the folder."""
        others = [part for part in _networks(self) if part not in self.held]
        return [part for part in others if not any((self.path / part).glob("*" + SUFFIX))]

    def read_networks(self, dtype: torch.dtype) -> dict[str, Any]:
        """The networks in the file, on the CPU; no safety checker, as by diffusers.

        Raises:
            UsageError: the file does not fit the configuration.
        """
        from safetensors.torch import load_file

        weights = load_file(self.file)
        unchecked: dict[str, Any] = dict.fromkeys(self.index.keys() & {CHECKER})
        return unchecked | {part: self._read(part, weights, dtype) for part in self.held}

    def _read(self, part: str, weights: Mapping[str, torch.Tensor], dtype: torch.dtype) -> Any:
        unfit = f"cannot read the {part} in {self.name} by the configuration in {self.path}"
        options = {"config": str(self.path), "subfolder": part, "torch_dtype": dtype, "local_files_only": True}
        try:
            # A dict of its own: what converts them takes some out.
            network = _converter(*self.index[part])(dict(weights), **options)
            if any(weight.is_meta for weight in network.parameters()):
                raise NotImplementedError
        except NotImplementedError as error:  # also of torch, which cannot move what is not there
            raise UsageError(f"{unfit} (weights are missing)") from error
        except Exception as error:  # of diffusers and torch, whatever does not fit
            raise UsageError(f"{unfit} ({one_line(error, 160)})") from error
        return network


def find_single_file(name: str, variant: str | None = None, model_config: str | None = None) -> SingleFile:
    """Find a checkpoint and what it does not hold; downloads what is on the hub.

    Args:
        name: A .safetensors file, or `owner/name/file.safetensors` on the hub.
        variant: Suffix of the weight files to download of networks that the checkpoint does not hold.
        model_config: A folder in diffusers' format or a hub id, whose configuration, tokenizers and scheduler are
            taken. None takes those of the model that diffusers knows the checkpoint for.

    Raises:
        UsageError: there is no such checkpoint, it holds no pipeline, or something that it does not hold is missing.
    """
    file = find_path("checkpoint", name, ())
    shapes = _read_shapes(name, file)
    source = _known_as(name, shapes) if model_config is None else model_config
    try:
        folder = open_folder(source, find_path("configuration", source, CONFIGS))
    except UsageError as error:
        raise UsageError(f"{name} needs a model config, a folder or a hub id: {error}") from error
    held = tuple(part for part in _networks(folder) if _is_held(part, folder, shapes))
    found = SingleFile(name, folder.path, file, held)
    if found.missing and not Path(source).expanduser().exists():
        _download(source, found, variant)
    if found.missing:
        raise UsageError(
            f"neither {name} nor {found.path} holds weights for {', '.join(found.missing)}: "
            f"give as model config a folder or a hub id of a {found.index['_class_name']} that does"
        )
    return found


def _read_shapes(name: str, file: Path) -> dict[str, list[int]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as weights:
            keys = weights.keys()
            shapes = {key: weights.get_slice(key).get_shape() for key in keys}
    except (OSError, SafetensorError) as error:
        raise UsageError(f"cannot read {name}: {one_line(error, 160)}") from error
    if any("lora_" in key or "lora." in key for key in shapes):
        raise UsageError(f"{name} is a LoRA: give it as one, and the model that it was made for as model")
    if any(key.endswith(("scaled_fp8", ".scale_weight")) for key in shapes):
        raise UsageError(f"{name} holds scaled fp8 weights, which diffusers cannot read: take a file in half precision")
    return shapes


def _known_as(name: str, shapes: Mapping[str, list[int]]) -> str:
    """The hub id of the model that diffusers knows a checkpoint for, by names and shapes of its weights."""
    import torch
    from diffusers.loaders import single_file_utils as known

    weights = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    with contextlib.suppress(LookupError, NameError, ValueError):  # of what it had not expected
        # Whatever is unknown is called Stable Diffusion 1 there.
        if known.infer_diffusers_model_type(weights) != "v1" or known.CHECKPOINT_KEY_NAMES["v1"] in weights:
            return str(known.fetch_diffusers_config(weights)["pretrained_model_name_or_path"])
    raise UsageError(f"cannot tell what model {name} is of: give a model config, a folder or a hub id")


def _networks(folder: ModelFolder) -> list[str]:
    """The components that have weights."""
    parts = [part for part, value in folder.index.items() if isinstance(value, list) and value[1] is not None]
    return [part for part in parts if part != CHECKER and (folder.path / part / "config.json").is_file()]


def _is_held(part: str, folder: ModelFolder, names: Iterable[str]) -> bool:
    library, kind = folder.index[part]
    if part in DENOISERS and part != folder.denoiser:
        raise UsageError(f"no file holds both {folder.denoiser} and {part}: load the folder or hub id {folder.name}")
    if part == folder.denoiser and _converter(library, kind) is None:
        raise UsageError(f"diffusers reads no {kind} from a file: load the folder or hub id {folder.name}")
    prefixes = PREFIXES.get(part) or PREFIXES.get(kind, ())
    has_weights = part == folder.denoiser or any(name.startswith(prefixes) for name in names)
    return has_weights and _converter(library, kind) is not None


def _download(hub_id: str, found: SingleFile, variant: str | None) -> None:
    """The networks that a checkpoint does not hold, beside the configuration, which is there."""
    from diffusers import DiffusionPipeline

    with asking_hub(f"the hub gave no {', '.join(found.missing)} of {hub_id}"):
        DiffusionPipeline.download(hub_id, variant=variant, **dict.fromkeys([*found.held, CHECKER]))


def _converter(library: str, kind: str) -> Any:
    """What makes a network of a checkpoint; None where diffusers makes none of that class."""
    from diffusers.loaders import single_file_utils as known

    network = getattr(importlib.import_module(library), kind, None) if library in LIBRARIES else None
    if kind in ENCODERS:
        return partial(getattr(known, ENCODERS[kind]), network)
    return getattr(network, "from_single_file", None)
