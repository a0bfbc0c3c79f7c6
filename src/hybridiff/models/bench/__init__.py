"""Models to be timed: the block structure of well-known networks, with random weights that are made when loaded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ...errors import UsageError
from .. import tiny
from ..folder import ModelFolder, read_json

if TYPE_CHECKING:
    import torch

FULL = "-full"
BENCH = ("bench-sdxl", "bench-sd3", *(f"bench-{name}{FULL}" for name in ("sdxl", "sd3", "qwen-image")))
"""Names of the models: narrow ones for a core, and SDXL, SD3.5-medium and Qwen-Image in their true shapes for a GPU."""

TRAINED = {name: "tiny-sdxl" if "sdxl" in name else "tiny-sd3" for name in BENCH}
"""The embedded model whose schedules stand for those that the model would have, were it trained."""

GUIDED: dict[str, dict[str, Any]] = {
    name: {"true_cfg_scale": 4.0, "negative_prompt": " "} if "qwen" in name else {"guidance_scale": 5.0}
    for name in BENCH
}
"""Arguments of the call with which a model has guidance."""


@dataclass(frozen=True)
class BenchFolder(ModelFolder):
    """Configurations only: all networks are made from them, from one seed, the same on every rank.

    Text encoders have one layer and the words of the embedded models: they make embeddings of the right width.
    """

    def for_device(self, device: str) -> Self:
        """This model; a network in its true shape is not made on a CPU.

        Raises:
            UsageError: names the narrow one.
        """
        if self.name.endswith(FULL) and device.startswith("cpu"):
            raise UsageError(f"{self.name} is for a GPU; on a CPU use {' or '.join(BENCH[:2])}")
        return self

    def read_networks(self, dtype: torch.dtype) -> dict[str, Any]:
        """All components but the scheduler."""
        import torch

        # Billions of random numbers are drawn where it takes seconds, in the type that they are wanted in.
        device = torch.device("cuda" if self.name.endswith(FULL) else "cpu")
        with device, torch.random.fork_rng(), _default_dtype(dtype):
            torch.manual_seed(0)
            made = {part: self._make(part, *kind) for part, kind in self.index.items() if isinstance(kind, list)}
        return {part: component for part, component in made.items() if component is not None}

    def _make(self, part: str, library: str | None, kind: str | None) -> Any:
        if library is None or part == "scheduler":
            return None
        if kind == "CLIPTokenizer":
            from transformers import CLIPTokenizer

            longest = read_json(self.path / part.replace("tokenizer", "text_encoder") / "config.json")
            words = tiny.folder("tiny-sdxl") / "tokenizer"
            return CLIPTokenizer.from_pretrained(words, model_max_length=longest["max_position_embeddings"])
        if library == "transformers":
            import transformers

            encoder = getattr(transformers, str(kind))
            return encoder(encoder.config_class.from_pretrained(self.path / part)).eval()
        import diffusers

        network = getattr(diffusers, str(kind))
        return network.from_config(read_json(self.path / part / "config.json")).eval()


def open_bench(name: str) -> BenchFolder:
    """One of the models."""
    return BenchFolder(name, Path(__file__).parent / name)


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
