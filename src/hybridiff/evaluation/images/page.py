"""An evaluation as tables and as a page of HTML with all pictures, which needs nothing but the folder it lies in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby
from urllib.parse import quote

from ...report.plots import KIND_COLORS, LINE_COLOR
from ...schedule.kinds import StepKind
from ...utils.tables import markdown_table
from ..tables import Column, Row, said_of, tabulate
from .gallery import Gallery
from .measures import TO_REFERENCE, TO_SERIAL
from .scores import SERIAL, StrategyScores

COLUMNS = (
    Column("strategy", "strategy"),
    Column("images", "images"),
    Column("ideal speed-up", "ideal_speedup", "{:.2f}x"),
    Column("full steps", "full_steps", "{:g}"),
    Column("PSNR", "psnr", "{:.1f} dB"),
    Column("its worst tenth", "psnr_worst_tenth", "{:.1f} dB"),
    Column("SSIM", "ssim", "{:.4f}"),
    Column("LPIPS", "lpips", "{:.4f}"),
    Column(TO_SERIAL, "fid_serial", "{:.2f}"),
    Column(TO_REFERENCE, "fid_reference", "{:.2f}"),
    Column("CLIP score", "clip_score", "{:.2f}"),
    Column("ImageReward", "image_reward", "{:.3f}"),
    Column("right", "right", "{:.0%}"),
)

EXPLANATION = """\
PSNR (at most 100 dB an image), SSIM and LPIPS: each image against that of `serial`, the stock pipeline on one device,
from the same prompt and seed; means, and of PSNR that of the worst tenth too. FID: all images of a strategy against
those of `serial`, and against the ground truth. CLIP score and ImageReward: images against their prompts. Right: share
of captions whose image is right. Ideal speed-up: of the schedules, against one device; nothing is timed here. Full
steps: mean of an image; steps that a rank evaluates ahead of others count, too."""

_COLORS = {kind.value[0]: (kind.value, KIND_COLORS.get(kind, LINE_COLOR)) for kind in StepKind}
"""Of each letter of a schedule: what it means, and its colour."""


def score_table(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Head and rows of all that can be measured; a dash where something is not known or does not apply."""
    return [tuple(column.head for column in COLUMNS), *(tuple(column.cell(row) for column in COLUMNS) for row in rows)]


def short_table(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """The same with those columns alone that some row fills."""
    return tabulate(rows, COLUMNS)


def skipped_lines(content: Row) -> list[str]:
    """What is not measured and why, and what else is to be known; a sentence each."""
    skipped = [f"{what} skipped: {why}" for what, why in content["skipped"].items()]
    return [*skipped, *content["notes"], *said_of(content["rows"], "strategy")]


def format_evaluation(content: Row) -> str:
    """The table as a page of Markdown.

    Args:
        content: Of the file of metrics.
    """
    lines = [f"# {_title(content)}\n", EXPLANATION, "", f"    {content['command']}\n"]
    lines += [markdown_table(score_table(content["rows"])), ""]
    return "\n".join([*lines, *(f"- {line}" for line in skipped_lines(content))]).rstrip() + "\n"


def format_page(content: Row, gallery: Gallery, scores: Sequence[StrategyScores]) -> Iterator[str]:
    """The page, piece by piece: the table, and for each prompt what every strategy made of it.

    Args:
        content: Of the file of metrics.
        gallery: Its folder is where the page is to lie.
        scores: Of its pictures.
    """
    title = escape(_title(content))
    yield _HEAD.replace("TITLE", title).replace("COLUMNS", str(len(scores)))
    yield f"<header><h1>{title}</h1><p>{_code(EXPLANATION)}</p><pre>{escape(content['command'])}</pre>{_table(content)}"
    yield "".join(f'<p class="skipped">{escape(line)}</p>' for line in skipped_lines(content))
    legend = "".join(f'<i style="background:{color}"></i>{letter} {word} ' for letter, (word, color) in _COLORS.items())
    yield f'<p class="legend">Steps: {legend}{_SLIDER}</p></header>\n<main>\n'
    for number, prompt in enumerate(gallery.prompts):
        said = f"<b>{number + 1}</b> {escape(prompt.prompt)} <small>seed {prompt.seed}</small>"
        yield f'<section><p class="prompt">{said}</p>'
        yield from (_figure(gallery, one, number) for one in scores)
        yield "</section>\n"
    yield "</main></body></html>\n"


def _title(content: Row) -> str:
    run = content["run"]
    return f"{run['model']}: {content['rows'][0]['images']} images by {len(content['rows'])} strategies"


def _code(text: str) -> str:
    """Text with words in backticks, as HTML."""
    parts = escape(text).split("`")
    return "".join(f"<code>{part}</code>" if place % 2 else part for place, part in enumerate(parts))


def _table(content: Row) -> str:
    head, *rows = score_table(content["rows"])
    lines = ["".join(f"<th>{escape(cell)}</th>" for cell in head)]
    lines += ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    return f"<div class=scroll><table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table></div>"


def _figure(gallery: Gallery, scores: StrategyScores, number: int) -> str:
    """A picture, its schedule, and how it differs from that of one device."""
    schedule, name = scores.records[number].schedule, escape(scores.strategy)
    image = _image(gallery.link(scores.strategy, number), name)
    bar = f'<div class="bar" style="background:{_gradient(schedule)}"></div><code>{escape(schedule)}</code>'
    caption = f"<figcaption><b>{name}</b><br>{escape(', '.join(_facts(scores, number)))}</figcaption>"
    if scores.strategy == SERIAL:
        return f"<figure>{caption}{image}{bar}</figure>"
    difference = f'<div class="diff">{image}{_image(gallery.link(SERIAL, number), SERIAL)}</div>'
    return f"<figure>{caption}{image}{bar}{difference}</figure>"


def _facts(scores: StrategyScores, number: int) -> Iterator[str]:
    """What was measured of one picture."""
    measured = {name: values[number] for name, values in scores.values.items()}
    for column in COLUMNS:
        value = measured.get(column.entry)
        if value is not None and column.entry == "right":
            yield "right" if value else "wrong"
        elif value is not None:
            yield f"{column.head} {column.cell(measured)}"


def _image(link: str, name: str) -> str:
    return f'<img loading="lazy" decoding="async" alt="{name}" src="{quote(link)}">'


def _gradient(schedule: str) -> str:
    """The steps of a schedule as bands from left to right."""
    bands, begin = [], 0
    for letter, steps in groupby(schedule):
        end = begin + len(list(steps))
        bands.append(f"{_COLORS[letter][1]} {100 * begin / len(schedule):.4g}% {100 * end / len(schedule):.4g}%")
        begin = end
    return f"linear-gradient(90deg,{','.join(bands)})"


_SLIDER = (
    '<label>Differences to serial, times <input type="range" min="1" max="128" value="16" '
    "oninput=\"document.documentElement.style.setProperty('--times',this.value);"
    'this.nextElementSibling.value=this.value"><output>16</output></label>'
)

# The browser takes the difference of two pictures by itself: no file for each is needed.
_HEAD = """\
<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>TITLE</title><style>
:root{--times:16;color-scheme:light dark}
body{font:15px/1.45 system-ui,sans-serif;margin:0 auto;padding:1.5rem;max-width:110rem}
h1{font-size:1.4rem;margin:0 0 .5rem}header p{max-width:60rem}pre{overflow-x:auto;opacity:.75}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.3rem .7rem;text-align:right;border-bottom:1px solid #8884;white-space:nowrap}
th:first-child,td:first-child{text-align:left}.skipped{margin:.4rem 0;opacity:.75}
.legend i{display:inline-block;width:.8em;height:.8em;margin:0 .3em 0 .8em}.legend label{margin-left:1.5em}
.legend input{vertical-align:middle;margin:0 .5em}
main{overflow-x:auto}section{display:grid;grid-template-columns:repeat(COLUMNS,minmax(9rem,20rem));gap:.3rem 1rem;
padding:1rem 0;border-top:1px solid #8884;content-visibility:auto;contain-intrinsic-size:auto 44rem}
.prompt{grid-column:1/-1;margin:0 0 .4rem}.prompt b{opacity:.5;margin-right:.5em}small{opacity:.6}
figure{margin:0;min-width:0;display:grid;grid-row:span 5;grid-template-rows:subgrid}
figcaption{font-size:.85rem;overflow-wrap:anywhere}img{display:block;width:100%;height:auto}.bar{height:.5rem}
figure code{font-size:.65rem;overflow-wrap:anywhere;opacity:.7}
.diff{position:relative;isolation:isolate;filter:brightness(var(--times))}
.diff img+img{position:absolute;inset:0;mix-blend-mode:difference}
</style></head><body>
"""
