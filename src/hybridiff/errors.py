"""Every error of the package that users may want to catch."""

from __future__ import annotations


class UsageError(ValueError):
    """Something the user gave does not fit; one sentence with the numbers and the remedy, the same on every rank."""


class RankError(RuntimeError):
    """A generation cannot go on because of a rank; raised on every rank, naming rank, phase and step."""


class CommError(RankError):
    """A message did not arrive: a rank died, or the deadline passed. The process group is of no further use."""


class ShardError(CommError):
    """A rank that shares an evaluation left in the middle of it; what happened there, all ranks tell each other."""


class EngineError(RuntimeError):
    """A request to an Engine, or the start of its ranks, failed; the message names the rank."""
