"""A comparison as tables: aligned text for the terminal, Markdown for a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...utils.tables import align, markdown_table
from ..tables import Column, Row, tabulate

_HEAD = """\
Denoising and the whole call in seconds: median (quartiles) over the repeats, for one prompt. Speed-up, ideal and
efficiency are of denoising, against serial on one device; *rho*, the time of a step with both branches over that of one
with a single branch, was measured in the same turns. The ideal is that of the recorded schedule at this rho, messages
free; efficiency is the speed-up's share of it."""

_PREDICTED = """\
Speed-up of denoising. In brackets: predicted, serial by its measured times as a polynomial of the number of pixels
(at most quadratic, without negative terms), the others as a share of serial and a constant."""

LEFT_OUT = {
    "ssim": "SSIM is left out: torchmetrics (hybridiff[eval]) is not installed",
    "lpips": "LPIPS is left out: torchvision, torchmetrics or AlexNet's weights are not on this machine",
}
"""What is said of a fidelity that nobody could compute."""


def format_comparison(content: Row) -> str:
    """The rows as text with aligned columns: times, then costs and fidelity."""
    tables = [table for rows in _by_resolution(content["rows"]) for table in (_times(rows), tabulate(rows, _COSTS))]
    tables += [_resolutions(content)] if len(_sizes(content)) > 1 else []
    said = "\n".join(f"note: {sentence}" for sentence in _sentences(content))
    return "\n\n".join(filter(None, [*map(align, tables), said]))


def format_page(content: Row, charts: Sequence[str]) -> str:
    """The same as a page of Markdown, with what was run and how.

    Args:
        content: What the JSON file holds.
        charts: Names of the charts beside the page.
    """
    run, machine = content["run"], content["machine"]
    facts = ", ".join(f"{name} {value}" for name, value in machine.items())
    prompts = f"{len(run['prompts'])} prompt{'s' * (len(run['prompts']) != 1)}"
    head = f"# {run['model']}, {run['num_inference_steps']} steps, {prompts}, {run['repeats']} repeats"
    parts = [head, f"    {content['command']}", f"{facts}.", _HEAD, *(f"![{name}]({name})" for name in charts)]
    for rows in _by_resolution(content["rows"]):
        parts += [_title(rows), markdown_table(_times(rows)), markdown_table(tabulate(rows, _COSTS))]
    if len(_sizes(content)) > 1:
        parts += ["## By resolution", _PREDICTED, markdown_table(_resolutions(content))]
    parts.append("\n".join(f"- {sentence}." for sentence in _sentences(content)))
    return "\n\n".join(parts) + "\n"


def name_of(row: Row) -> str:
    """What a row is called: `hybrid on 2`."""
    return f"{row['strategy']} on {row['devices']}"


def missing_fidelities(rows: Sequence[Row]) -> list[str]:
    """A sentence for each measure of fidelity that could not be computed."""
    return [text for name, text in LEFT_OUT.items() if any(name in row and row[name] is None for row in rows)]


def _by_resolution(rows: Sequence[Row]) -> list[list[Row]]:
    """The measured rows, those of one resolution together."""
    measured = [row for row in rows if not row.get("is_predicted")]
    sizes = dict.fromkeys(row.get("resolution") for row in measured)
    return [[row for row in measured if row.get("resolution") == size] for size in sizes]


def _title(rows: Sequence[Row]) -> str:
    size = rows[0].get("resolution")
    return f"## rho {rows[0]['rho']:.2f}" + ("" if size is None else f", {size} x {size}")


def _times(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    size = rows[0].get("resolution")
    what = "strategy" if size is None else f"{size} x {size}"
    return tabulate(rows, [Column(f"{what}, rho {rows[0]['rho']:.2f}", "strategy", name_of), *_TIMES])


def _resolutions(content: Row) -> list[tuple[str, ...]]:
    sizes = _sizes(content)
    found: dict[str, dict[int, str]] = {}
    for row in content["rows"]:
        speedup = f"{row['speedup']:.2f}x"
        found.setdefault(name_of(row), {})[row["resolution"]] = f"({speedup})" if row.get("is_predicted") else speedup
    return [
        ("speed-up at", *map(str, sizes)),
        *((name, *(cells[size] for size in sizes)) for name, cells in found.items()),
    ]


def _sizes(content: Row) -> list[int]:
    return sorted({row["resolution"] for row in content["rows"] if "resolution" in row})


def _sentences(content: Row) -> list[str]:
    """What is to be known beside the rows."""
    checks: Sequence[Row] = content.get("prediction", ())
    said = [*content["notes"]]
    if checks:
        worst = max(checks, key=lambda check: abs(check["error"]))
        said.append(
            f"Predicted from the smaller sizes, speed-ups at {worst['resolution']} are off by "
            f"{abs(worst['error']):.1%} at most ({name_of(worst)}: {worst['predicted']:.2f}x predicted, "
            f"{worst['measured']:.2f}x measured)"
        )
    return said


def _spread(name: str) -> Callable[[Row], str]:
    return lambda row: "{median:.3f} ({low:.3f}-{high:.3f})".format(**row["spread"][name])


_TIMES = (
    Column("denoising", "spread", _spread("denoising_seconds")),
    Column("speed-up", "speedup", "{:.2f}x"),
    Column("ideal", "ideal_speedup", "{:.2f}x"),
    Column("efficiency", "efficiency", "{:.2f}"),
    Column("whole call", "spread", _spread("seconds")),
    Column("speed-up", "speedup_whole", "{:.2f}x"),
)

_COSTS = (
    Column("strategy", "strategy", name_of),
    Column("steps", "steps", lambda row: ", ".join(f"{count:g} {kind}" for kind, count in row["steps"].items())),
    Column("MB", "bytes_by_purpose", lambda row: f"{sum(row['bytes_by_purpose'].values()) / 1e6:.2f}"),
    Column("messages", "messages", lambda row: f"{sum(row['messages'].values()):g}"),
    Column("waiting a rank, s", "waiting_seconds", lambda row: " ".join(f"{s:.2f}" for s in row["waiting_seconds"])),
    Column("peak GiB", "peak_memory", lambda row: f"{max(row['peak_memory'], default=0) / 2**30:.2f}"),
    Column("PSNR, dB", "psnr", "{:.1f}"),
    Column("SSIM", "ssim", "{:.4f}"),
    Column("LPIPS", "lpips", "{:.4f}"),
)
