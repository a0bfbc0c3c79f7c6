"""Encoders of text and images whose weights stay on the disk: for ranks that hear from another one what they say.

Whatever needs the weights all the same (a call outside of a run, a layer called by itself, a LoRA, an added token)
reads them first.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .folder import ModelFolder

if TYPE_CHECKING:
    import torch

NAMES = ("text_encoder", "image_encoder")
"""What the names of such components begin with."""

_NEED_WEIGHTS = ("get_input_embeddings", "load_adapter", "add_adapter", "state_dict")


@dataclass
class _Unread:
    """What an encoder without weights knows of them.

    Attributes:
        kind: Its class.
        path: Its folder.
        options: How they are read.
        device: Where they belong.
        handles: The hooks on its layers.
    """

    kind: type
    path: Path
    options: dict[str, Any]
    device: Any = "cpu"
    handles: list[Any] = field(default_factory=list)


def lazy_encoders(folder: ModelFolder, dtype: torch.dtype, variant: str | None = None) -> dict[str, Any]:
    """The encoders of a pipeline by name, with configurations and without weights; quantized ones are not among them.

    Args:
        folder: The pipeline.
        dtype: Of the weights.
        variant: Suffix of the weight files, where there are such.
    """
    import transformers

    made = {}
    for name in filter(lambda name: name.startswith(NAMES), folder.index):
        library, kind_name = folder.index[name]
        kind = getattr(transformers, kind_name, None) if library == "transformers" else None
        if kind is None or not any((folder.path / name).glob("*.safetensors")):
            continue
        has_variant = any((folder.path / name).glob(f"*.{variant}*.safetensors"))
        options = {"dtype": dtype, "variant": variant if has_variant else None, "local_files_only": True}
        config = kind.config_class.from_pretrained(folder.path / name, local_files_only=True)
        if getattr(config, "quantization_config", None) is None:
            made[name] = _without_weights(_Unread(kind, folder.path / name, options), config)
    return made


def is_unread(encoder: Any) -> bool:
    """Whether the weights of an encoder are still on the disk."""
    return isinstance(getattr(encoder, "_unread", None), _Unread)


def _without_weights(unread: _Unread, config: Any) -> Any:
    import torch

    kind: Any = unread.kind
    with torch.device("meta"):
        encoder = kind._from_config(config, dtype=unread.options["dtype"]).eval()
    encoder._unread = unread
    methods = {name: _reading_first(getattr(kind, name)) for name in ("forward", *_NEED_WEIGHTS)}
    further = {"to": _to, "device": property(_device), "__module__": kind.__module__}
    encoder.__class__ = type(kind.__name__, (kind,), methods | further)
    layers = [layer for layer in encoder.modules() if layer is not encoder]
    unread.handles = [layer.register_forward_pre_hook(lambda *_: _read(encoder)) for layer in layers]
    return encoder


def _read(encoder: Any) -> None:
    """Read the weights into the layers that are there, so that whoever holds one of them has it whole."""
    import torch

    unread: _Unread = encoder._unread
    whole = unread.kind.from_pretrained(unread.path, **unread.options)  # type: ignore[attr-defined]
    whole.to(device=unread.device)
    if encoder.dtype != unread.options["dtype"]:  # cast since: by `to`, `half` or their like
        whole.to(dtype=encoder.dtype)
    for layer, read in zip(encoder.modules(), whole.modules(), strict=True):
        layer._parameters, layer._buffers = read._parameters, read._buffers
        vars(layer).update({name: value for name, value in vars(read).items() if isinstance(value, torch.Tensor)})
    for handle in unread.handles:
        handle.remove()
    encoder.__class__ = unread.kind
    del encoder._unread


def _reading_first(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def read_first(encoder: Any, *args: Any, **kwargs: Any) -> Any:
        if is_unread(encoder):
            _read(encoder)
        return method(encoder, *args, **kwargs)

    return read_first


def _to(encoder: Any, *args: Any, **kwargs: Any) -> Any:
    """Where weights belong once they are read; what they are cast to, those without content are at once."""
    import torch

    for value in (*args, *kwargs.values()):
        if isinstance(value, torch.dtype):
            super(encoder.__class__, encoder).to(dtype=value)
        elif isinstance(value, (str, torch.device)) or type(value) is int:
            encoder._unread.device = torch.device(value)
    return encoder


def _device(encoder: Any) -> torch.device:
    import torch

    return torch.device(encoder._unread.device)
