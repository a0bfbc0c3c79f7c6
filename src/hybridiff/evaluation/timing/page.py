"""A comparison as tables: aligned text for the terminal, Markdown for a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...utils.tables import align, markdown_table

Row = Mapping[str, Any]

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
    tables = [align(table) for rows in _by_resolution(content["rows"]) for table in (_times(rows), _costs(rows))]
    further = [align(_resolutions(content))] if len(_sizes(content)) > 1 else []
    said = "\n".join(f"note: {sentence}" for sentence in _sentences(content))
    return "\n\n".join(filter(None, [*tables, *further, said]))


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
        parts += [_title(rows), markdown_table(_times(rows)), markdown_table(_costs(rows))]
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
    head = (
        f"{what}, rho {rows[0]['rho']:.2f}",
        "denoising",
        "speed-up",
        "ideal",
        "efficiency",
        "whole call",
        "speed-up",
    )
    return [
        head,
        *(
            (
                name_of(row),
                _spread(row["spread"]["denoising_seconds"]),
                f"{row['speedup']:.2f}x",
                f"{row['ideal_speedup']:.2f}x",
                f"{row['efficiency']:.2f}",
                _spread(row["spread"]["seconds"]),
                f"{row['speedup_whole']:.2f}x",
            )
            for row in rows
        ),
    ]


def _costs(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    columns = {name: cell for name, (key, cell) in _COLUMNS.items() if any(row.get(key) is not None for row in rows)}
    return [
        ("strategy", *columns),
        *((name_of(row), *(cell(row) for cell in columns.values())) for row in rows),
    ]


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


def _spread(spread: Row) -> str:
    return f"{spread['median']:.3f} ({spread['low']:.3f}-{spread['high']:.3f})"


def _number(name: str, form: str) -> Callable[[Row], str]:
    return lambda row: "-" if row.get(name) is None else form.format(row[name])


def _waiting(row: Row) -> str:
    return " ".join(f"{seconds:.2f}" for seconds in row.get("waiting_seconds", ())) or "-"


_COLUMNS: dict[str, tuple[str, Callable[[Row], str]]] = {
    "steps": ("steps", lambda row: ", ".join(f"{count:g} {kind}" for kind, count in row["steps"].items())),
    "MB": ("bytes_by_purpose", lambda row: f"{sum(row['bytes_by_purpose'].values()) / 1e6:.2f}"),
    "messages": ("messages", lambda row: f"{sum(row.get('messages', {}).values()):g}"),
    "waiting a rank, s": ("waiting_seconds", _waiting),
    "peak GiB": ("peak_memory", lambda row: f"{max(row['peak_memory'], default=0) / 2**30:.2f}"),
    "PSNR, dB": ("psnr", _number("psnr", "{:.1f}")),
    "SSIM": ("ssim", _number("ssim", "{:.4f}")),
    "LPIPS": ("lpips", _number("lpips", "{:.4f}")),
}
"""Each column: the entry of a row without which it is left out, and what stands in it."""
