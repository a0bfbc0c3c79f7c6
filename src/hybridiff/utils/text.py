"""Words of others in sentences of our own."""

from __future__ import annotations


def one_line(error: Exception, longest: int = 240) -> str:
    """What an error says, on one line and no longer than that."""
    text = " ".join(str(error).split())
    return text[:longest] + " ..." if len(text) > longest else text
