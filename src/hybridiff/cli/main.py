"""The command `hybridiff`: its commands, what it says of errors, its exit codes."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

if TYPE_CHECKING:
    import typer

TRACEBACK = "show where an error came from; HYBRIDIFF_TRACEBACK=1 does so too"
FAILED, BAD_INPUT, INTERRUPTED, TERMINATED = 1, 2, 130, 143


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0; 2 for bad input (nothing was started), 1 for a failure while running, 130 after Ctrl-C.

    Raises:
        SystemExit: 143, after SIGTERM.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with _left_at_sigterm():
            code = _run(arguments)
    except KeyboardInterrupt:
        code = INTERRUPTED
    if code == INTERRUPTED:
        print("hybridiff: interrupted; all ranks have been ended", file=sys.stderr)
    return code


@contextlib.contextmanager
def _left_at_sigterm() -> Iterator[None]:
    """SIGTERM, too, ends ranks and removes their files; of ranks that torchrun started it sees to that itself."""
    from ..distributed.placement import is_under_torchrun

    is_ours = threading.current_thread() is threading.main_thread()
    if not is_ours or is_under_torchrun() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _run(arguments: list[str]) -> int:
    traced = "--traceback" in arguments or bool(os.environ.get("HYBRIDIFF_TRACEBACK"))
    # The flag may stand anywhere: people add it to the end of the command that failed.
    arguments = [argument for argument in arguments if argument != "--traceback"]
    try:
        command = parse(arguments)
        if isinstance(command, int):
            return command
        command.run()
    except Exception as error:
        if traced:
            import traceback

            traceback.print_exception(error)
        text, code = _explain(error)
        print(f"hybridiff: {text}", file=sys.stderr)
        return code
    return 0


def parse(arguments: Sequence[str]) -> Any:
    """The command that the arguments name, made by its options; or an exit code, after `--help` and the like.

    Raises:
        UsageError, TyperException: the arguments do not fit.
    """
    import typer  # here and below, so that Ctrl-C ends in one line also while modules load

    command = typer.main.get_command(build_app())
    return command.main(list(arguments), prog_name="hybridiff", standalone_mode=False)


def build_app() -> "typer.Typer":
    """The commands as typer sees them: classes, made by their options."""
    import typer

    from .. import __version__
    from .bench import Bench
    from .demo import Demo
    from .evaluate import Evaluate
    from .flags import dashes, flag
    from .generate import Generate
    from .measure import Calibrate, Inspect, Simulate, Study

    def show_version(asked: bool) -> None:
        if asked:
            print(f"hybridiff {__version__}")
            raise typer.Exit()

    def root(
        version: Annotated[bool, flag("Options", "show the version", "", "--version", callback=show_version)] = False,
        traceback: Annotated[bool, flag("Options", TRACEBACK, "", "--traceback")] = False,
    ) -> None:
        """One guided diffusion image on several devices."""

    names = {"help_option_names": ["-h", "--help"], "token_normalize_func": dashes}
    app = typer.Typer(callback=root, pretty_exceptions_enable=False, context_settings=names)
    for command in (Generate, Inspect, Calibrate, Simulate, Study, Bench, Evaluate, Demo):
        app.command(command.__name__.lower())(command)
    return app


def _explain(error: Exception) -> tuple[str, int]:
    """What to say of an error, and the exit code."""
    import typer

    from ..errors import EngineError, RankError, UsageError

    if isinstance(error, typer.TyperException):
        command = getattr(getattr(error, "ctx", None), "command_path", "hybridiff")
        return f"{error.format_message().rstrip('.')}; see {command} --help", BAD_INPUT
    if isinstance(error, UsageError):
        return str(error), BAD_INPUT
    if isinstance(error, (EngineError, RankError, OSError)):
        return str(error), FAILED
    what = " ".join(f"{type(error).__name__}: {error}".split())
    return f"{what}; --traceback shows where it came from", FAILED
