"""What the replies of all ranks mean: from several stories, the one error that tells what went wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import EngineError, UsageError
from .protocol import Died, Failed


class RemoteTraceback(Exception):
    """Carries the traceback of a rank as the cause of an error in the parent."""

    def __str__(self) -> str:
        return "\n" + str(self.args[0])


def verdict(
    replies: Mapping[int, Any], ranks: int, silence: float, doing: str, may_be_slow: bool = False
) -> Exception | None:
    """The error to raise, with what is known of its cause; None where every rank did as asked.

    A death explains more than the errors it causes elsewhere, and a rank's own error more than the echo of it on
    other ranks, though that echo names phase and step.

    Args:
        replies: What each rank said last, by rank; a rank without an entry said nothing.
        ranks: Number of ranks.
        silence: Seconds that were waited for a sign of life.
        doing: What the ranks did: "generating after step 3 of 50".
        may_be_slow: A rank that said nothing yet may not have come to where the others were.

    Returns:
        A UsageError or another ValueError where all ranks that can refuse a request alike; else an EngineError.
    """
    failed = {rank: reply for rank, reply in replies.items() if isinstance(reply, Failed)}
    died = {rank: reply for rank, reply in replies.items() if isinstance(reply, Died)}
    silent = [rank for rank in range(ranks) if rank not in replies]
    if died:
        return _death(died, failed, doing)
    stories = {(failure.kind, failure.text) for failure in failed.values()}
    if len(stories) == 1 and len(failed) == (len(replies) if may_be_slow else ranks):
        failure = next(iter(failed.values()))
        if failure.is_bad_input:
            return _refusal(failure)
    if failed:
        return _failure(failed, silent, doing)
    if silent:
        return EngineError(f"no sign of life from {_names(silent)} for {silence:g} s while {doing}")
    return None


def _refusal(failure: Failed) -> Exception:
    if failure.kind == UsageError.__name__:
        return UsageError(failure.text)  # one sentence, which says all
    return _because(ValueError(failure.text), failure.traceback)


def _death(died: Mapping[int, Died], failed: Mapping[int, Failed], doing: str) -> Exception:
    rank, death = next(iter(died.items()))
    echo = _echo(failed)
    where = f"; {echo.split(': ')[0]}" if echo else ""  # where another rank was, not what its network said
    error = EngineError(f"rank {rank} {death.how} while {doing}{where}")
    return _because(error, f"the last lines of rank {rank}:\n{death.log}") if death.log else error


def _failure(failed: Mapping[int, Failed], silent: Iterable[int], doing: str) -> Exception:
    rank, failure = min(failed.items(), key=lambda item: (item[1].is_echo, item[0]))
    text = _echo(failed)
    if text is None:
        text = f"rank {rank} failed while {doing}: {failure.kind}: {failure.text}"
    elif failure.is_echo and silent:  # nobody says what went wrong, so those who say nothing are at fault
        text = f"no sign of life from {_names(silent)}; {text}"
    return _because(EngineError(text), failure.traceback)


def _echo(failed: Mapping[int, Failed]) -> str | None:
    """What a rank says of another's failure, less the talk of the network library about its own source files."""
    return next((failure.text.split(": [/")[0] for failure in failed.values() if failure.is_echo), None)


def _because(error: Exception, traceback: str) -> Exception:
    error.__cause__ = RemoteTraceback(traceback)
    return error


def _names(ranks: Iterable[int]) -> str:
    numbers = [str(rank) for rank in ranks]
    return f"rank{'s' * (len(numbers) > 1)} {', '.join(numbers)}"
