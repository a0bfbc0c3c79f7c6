"""Images on disk that take long to generate: a study that was stopped need not generate them again."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ...utils.files import write_whole
from ...utils.prompts import Prompt

Pixels = np.ndarray[Any, np.dtype[np.float32]]
"""(H, W, 3) from 0 to 1."""


class KeptImages:
    """A folder of images, one file per prompt and way to generate; it may be deleted at any time.

    Args:
        folder: Made when the first image is kept.
        facts: What decides the images beside the prompt; images of other facts in the same folder are not found.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        self._folder, self._facts = folder, facts

    def find(self, prompt: Prompt) -> Pixels | None:
        """The image of a prompt with its seed; None where it is not there, or cannot be read."""
        try:
            return np.asarray(np.load(self._path(prompt), allow_pickle=False))
        except (OSError, ValueError, EOFError):
            return None

    def keep(self, prompt: Prompt, pixels: Pixels) -> None:
        """Write the image of a prompt; never half of it."""
        self._folder.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        np.save(content, pixels, allow_pickle=False)
        write_whole(self._path(prompt), content.getvalue())

    def clear(self) -> None:
        """Forget them all."""
        for path in self._folder.glob("*.npy"):
            path.unlink()

    def _path(self, prompt: Prompt) -> Path:
        identity = json.dumps([self._facts, asdict(prompt)], sort_keys=True)
        return self._folder / f"{hashlib.sha256(identity.encode()).hexdigest()[:24]}.npy"
