"""The nested cuts of a transformer: its middle blocks are the inner stage."""

from __future__ import annotations

from typing import Any

from ..split import Cut, Unit

KEEPS_RESIDUAL = True
"""Blocks add to the streams that run through them, so what the inner ones add is the smoother quantity."""


def list_units(transformer: Any) -> list[Unit]:
    """The blocks of an `SD3Transformer2DModel` in order of execution."""
    return [Unit(f"transformer_blocks.{i}", None) for i in range(len(transformer.transformer_blocks))]


def list_cuts(transformer: Any) -> list[Cut]:
    """All nested cuts; the outer stage keeps at least the first and the last block.

    The last block drops the text stream, so it cannot hand a boundary back.
    """
    blocks = len(transformer.transformer_blocks)
    return [Cut(entry, exit_) for entry in range(blocks - 2) for exit_ in range(entry + 1, blocks - 1)]
