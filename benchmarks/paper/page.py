"""A table of the paper as a page of Markdown: our rows, the paper's numbers beside them, what cannot be compared."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from hybridiff.evaluation.metrics import HIGHEST_PSNR
from hybridiff.utils.tables import markdown_table

from .methods import PARALLEL_STEPS, methods_of
from .reported import MODELS, REPORTED, Reported
from .rows import Row, find_best
from .said import HEAD, NOT_COMPARABLE, TITLES

LINE = 120

Timed = Mapping[str, Mapping[str, Mapping[str, float]]]
"""By model and setting, see `timing.measure_seconds`."""

Column = tuple[str, Callable[[Row], str]]


def format_page(content: Mapping[str, Any]) -> str:
    """The page.

    Args:
        content: What the JSON file holds, see `format_tables`.
    """
    table, limit, steps = content["table"], content["limit"], content["steps"]
    command = content["command"]
    title, shows = TITLES[table]
    parts = [
        f"# {title}",
        shows,
        f"    {command}",
        _wrap(HEAD.format(captions=limit, steps=steps)),
        *(part for model, lines in format_tables(content).items() for part in (f"## {_title(model)}", lines)),
        *map(_wrap, _timing(content)),
        *map(_wrap, _left_out(content)),
        "What cannot be compared:",
        "\n".join(_wrap(f"- {sentence}", indent="  ") for sentence in NOT_COMPARABLE[table]),
    ]
    return "\n\n".join(parts) + "\n"


def format_tables(content: Mapping[str, Any]) -> dict[str, str]:
    """The tables in Markdown, one by model.

    Args:
        content: With `table`, `steps`, `rows` (of `Row`s as plain data) and `timed` (see `Timed`; may be empty).
    """
    rows, table = rows_of(content), content["table"]
    models = list(dict.fromkeys(row.model for row in rows))
    if table == 4:
        return {model: _ablation(model, [row for row in rows if row.model == model]) for model in models}
    titles = {(m.key, m.devices): m.title for m in methods_of(table, content["steps"])}
    columns = list(_columns(titles, table, content["timed"]))
    return {
        model: markdown_table(
            [
                [name for name, _ in columns],
                *([cell(row) for _, cell in columns] for row in find_best(rows) if row.model == model),
            ],
            words=2,
        )
        for model in models
    }


def rows_of(content: Mapping[str, Any]) -> list[Row]:
    """The rows that a JSON file holds."""
    return [Row(**row | {"tau1": tuple(row["tau1"]) if row["tau1"] else None}) for row in content["rows"]]


def _columns(titles: Mapping[tuple[str, int], str], table: int, timed: Timed) -> Iterable[Column]:
    yield "method", lambda row: titles[row.method, row.devices]
    yield "setting", lambda row: f"`{row.setting}`"
    if table == 2:
        yield "images at once", lambda row: str(row.images)
    yield "ideal speed-up", lambda row: f"{row.ideal_speedup:.2f}x"
    yield "the same on one device", lambda row: f"{row.one_device:.2f}x"
    if table == 2:
        yield "stages", _stages
        yield "tau1", _tau1
    if timed:
        yield "seconds", lambda row: _cell(_timed(timed, row, "seconds"), "{:.2f}")
        yield "speed-up", lambda row: _cell(_timed(timed, row, "speedup_whole"), "{:.2f}x")
    yield "MiB an image", lambda row: f"{row.bytes / 2**20:.2f}"
    yield "PSNR mean / worst", _psnr
    yield "SSIM", lambda row: _cell(row.ssim, "{:.4f}")
    for name, attribute, form in PAPER_COLUMNS:
        yield f"paper: {name}", partial(_of_paper, attribute=attribute, form=form)


PAPER_COLUMNS = (
    ("seconds", "seconds", "{:.2f}"),
    ("speed-up", "speedup", "{:.2f}x"),
    ("GiB", "gibibytes", "{:.3f}"),
    ("PSNR", "psnr", "{:.1f}"),
    ("LPIPS", "lpips", "{:.3f}"),
    ("FID", "fid", "{:.2f}"),
)


def _ablation(model: str, rows: Sequence[Row]) -> str:
    """One line for each k, with ours at the least tolerance that is as fast."""
    ours = sorted((row for row in rows if row.method == "hybrid"), key=lambda row: row.ideal_speedup)
    head = ["k", "ideal speed-up", "the same on one device", "tau1", "PSNR mean / worst", "SSIM"]
    head += ["ours as fast", "ideal speed-up of ours", "PSNR of ours", "SSIM of ours"]
    lines = [[*head, "paper: seconds", "paper: speed-up", "paper: FID"]]
    for row in rows:
        if row.method == "hybrid":
            continue
        equal = next((one for one in ours if one.ideal_speedup >= row.ideal_speedup), None)
        theirs = _reported(row)
        lines.append(
            [
                _parallel_steps(row),
                f"{row.ideal_speedup:.2f}x",
                f"{row.one_device:.2f}x",
                _tau1(row),
                _psnr(row),
                _cell(row.ssim, "{:.4f}"),
                *(_of_ours(equal) if row.method != "partitioning" else [""] * 4),
                _cell(theirs.seconds, "{:.2f}"),
                _cell(theirs.speedup, "{:.2f}x"),
                _cell(theirs.fid, "{:.2f}"),
            ]
        )
    return markdown_table(lines, words=1)


def _of_ours(row: Row | None) -> list[str]:
    if row is None:
        return ["", "none is as fast", "", ""]
    return [f"`{row.setting}`", f"{row.ideal_speedup:.2f}x", _psnr(row), _cell(row.ssim, "{:.4f}")]


def _parallel_steps(row: Row) -> str:
    if row.method == "partitioning":
        return "0 (partitioning alone)"
    return row.method.partition("-")[2] or str(PARALLEL_STEPS[0])


def _title(model: str) -> str:
    return f"{model}, in place of {MODELS[model]}"


def _timing(content: Mapping[str, Any]) -> Iterable[str]:
    """What is to be known of measured times."""
    if content["timed"]:
        machine = ", ".join(f"{name} {value}" for name, value in content["machine"].items())
        rhos = ", ".join(f"{_range(found)} of {model}" for model, found in content["timed"].items())
        yield (
            f"*Seconds* and *speed-up*: of the whole call, on CPU ranks of one pinned core each while all cores work, "
            f"medians of {content['repeats']} repeats; rho, a step with both branches over one with a single branch, "
            f"is {rhos}. {machine}."
        )
    if again := content.get("again"):
        named = ", ".join(f"{name} ({date})" for name, date in again.items())
        yield (
            f"Measured anew since, by later code, with the other rows as they were: {named}. Where images changed and "
            "*seconds* are empty, those have not been measured again."
        )


def _range(found: Mapping[str, Mapping[str, float]]) -> str:
    """Least and greatest rho: engines of serial are opened anew for every few methods."""
    rhos = [f"{one['rho']:.2f}" for one in found.values()]
    return " to ".join(sorted({min(rhos), max(rhos)}))


def _left_out(content: Mapping[str, Any]) -> Iterable[str]:
    """The settings that were tried, too, and what AsyncDiff's own code would send."""
    rows = rows_of(content)
    left = [row for row in rows if row not in find_best(rows)] if content["table"] != 4 else []
    if left:
        named = "; ".join(f"`{row.setting}` ({row.model}, {row.ideal_speedup:.2f}x, {row.psnr:.1f} dB)" for row in left)
        yield f"Tried, and left out as another setting of the same method is as fast and as near: {named}."
    sent = [row for row in rows if row.bytes_of_all_modules is not None]
    if sent:
        named = "; ".join(
            f"{(row.bytes_of_all_modules or 0) / 2**20:.1f} MiB in place of {row.bytes / 2**20:.2f} (`{row.setting}`, "
            f"{row.model})"
            for row in sent
        )
        yield f"AsyncDiff's published code broadcasts what every module returns, which here would be {named}."


def _reported(row: Row) -> Reported:
    return REPORTED[row.model].get((row.method, row.devices), Reported())


def _wrap(text: str, indent: str = "") -> str:
    return textwrap.fill(text, LINE, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _of_paper(row: Row, attribute: str, form: str) -> str:
    return _cell(getattr(_reported(row), attribute), form)


def _timed(timed: Timed, row: Row, name: str) -> float | None:
    return timed.get(row.model, {}).get(row.setting, {}).get(name)


def _cell(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def _stages(row: Row) -> str:
    return "" if row.outer is None or row.inner is None else f"{row.outer:.2f}, {row.inner:.2f}"


def _tau1(row: Row) -> str:
    return "" if row.tau1 is None else "-".join(map(str, sorted(set(row.tau1))))


def _psnr(row: Row) -> str:
    return f"{row.psnr:.1f} / {row.worst:.1f} dB" if row.psnr < HIGHEST_PSNR else "identical"
