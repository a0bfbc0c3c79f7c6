"""docs/pipelines.md: the table in it, a row a specimen, read and written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from support.every_pipeline import treatment
from zoo import ZOO

PAGE = Path(__file__).parents[2] / "docs" / "pipelines.md"

GROUPS = {
    "batched": "One call with both branches, each rank its branch",
    "positive-first": "One call, the conditional branch first, or lists of samples",
    "branches": "Three and more branches in one call",
    "extra": "A further call in some steps, which are full then",
    "sequential": "A call for each branch, foreseen at the first one",
    "guider": "Guiders of modular and newer pipelines",
    "late": "A guider that begins late",
    "single": "One branch: no guidance, or a distilled one; cached steps, and batches are split",
    "whole": "The whole batch on every rank, cached steps between: perturbed attention",
    "own": "Everything on every rank, all steps full: the network is changed or read between calls",
    "refused": "Refused with one sentence: a network that predicts film and sound at once",
}
"""What treatments are called, in the order of the page."""

COLUMNS = "| pipeline | layout | cfg | cached | reuse | worst difference |\n|---|---|---|---|---|---|"
BEGIN, END = "<!-- written by `make pipelines`: begin -->\n", "<!-- written by `make pipelines`: end -->\n"


@dataclass(frozen=True)
class Facts:
    """What two real ranks showed of a specimen.

    Attributes:
        layout: Branches, and the calls of a step that have them.
        cfg: Most rows of a full step that a rank evaluated, of how many; what else became of it.
        cached: Whether there was a cached step.
        reuse: Whether there was a reuse step.
        difference: The largest one to the unmodified pipeline in a run of full steps, relative to its largest value.
    """

    layout: str
    cfg: str
    cached: str
    reuse: str
    difference: float | None

    @property
    def told(self) -> tuple[str, ...]:
        """What is the same on every machine."""
        return self.layout, self.cfg, self.cached, self.reuse

    def row(self, name: str) -> str:
        difference = "-" if self.difference is None else "0" if self.difference == 0 else f"{self.difference:.0e}"
        return f"| {title(name)} | {' | '.join(self.told)} | {difference} |"


REFUSED = Facts("-", "refused", "-", "-", None)


def title(name: str) -> str:
    """A specimen as the page calls it: without "Pipeline", what is special about it in brackets."""
    kind, _, special = name.partition(":")
    return kind.removesuffix("Pipeline") + (f" ({special})" if special else "")


def read_rows(text: str) -> dict[str, tuple[str, ...]]:
    """The cells behind each specimen's title."""
    lines = text.partition(BEGIN)[2].partition(END)[0].splitlines()
    rows = [tuple(line.strip("| ").split(" | ")) for line in lines if line.startswith("| ")]
    return {cells[0]: cells[1:] for cells in rows if cells[0] != "pipeline"}


def with_table(text: str, facts: Mapping[str, Facts]) -> str:
    """The page with a table for each treatment in the place of those that were there."""
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + _tables(facts) + END + rest.partition(END)[2]


def _tables(facts: Mapping[str, Facts]) -> str:
    classes = len({name.partition(":")[0] for name in facts})
    parts = [f"{len(facts)} specimens of {classes} classes.\n"]
    for group, words in GROUPS.items():
        names = sorted((name for name in ZOO if treatment(name) == group), key=title)
        rows = "\n".join(facts[name].row(name) for name in names)
        parts.append(f"## {words} ({len(names)})\n\n{COLUMNS}\n{rows}\n")
    return "\n".join(parts)
