"""Two small trained diffusion models, and the captioned scenes that they generate."""

from __future__ import annotations

from pathlib import Path

EMBEDDED = ("tiny-sdxl", "tiny-sd3")
"""Names of the models."""

GUIDANCE = {"tiny-sdxl": 2.0, "tiny-sd3": 5.0}
"""The guidance scales at which they generate best; more distorts colours."""


def folder(name: str) -> Path:
    """Where a model lies, in diffusers' folder format."""
    return Path(__file__).parent / name
