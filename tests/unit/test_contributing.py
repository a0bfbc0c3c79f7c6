"""CONTRIBUTING.md, CHANGELOG.md and docs/pipelines.md: what they name is there, and what there is they name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import hybridiff
from hybridiff import ParallelConfig, PublishedSettings
from support.pipelines_page import PAGE, read_rows, title
from zoo import ZOO

ROOT = Path(__file__).parents[2]
PACKAGE = Path(hybridiff.__file__).parent
GUIDE = (ROOT / "CONTRIBUTING.md").read_text()
CHANGES = (ROOT / "CHANGELOG.md").read_text()


def test_every_path_is_there() -> None:
    named = set(re.findall(r"`([\w./-]+(?:/|\.py|\.json))`", GUIDE)) | set(re.findall(r"\]\(([\w./-]+)\)", GUIDE))
    assert len(named) > 30
    assert [path for path in sorted(named) if not any((folder / path).exists() for folder in (ROOT, PACKAGE))] == []


def test_the_map_has_every_room() -> None:
    rooms = {path.name for path in PACKAGE.iterdir() if not path.name.startswith("_") and path.name != "py.typed"}
    first_cells = " ".join(re.findall(r"^\| (`[^|]+) \|", GUIDE, re.MULTILINE))
    assert {name.rstrip("/") for name in re.findall(r"`([\w.]+/?)`", first_cells)} == rooms


def test_classes_and_functions_of_the_recipes_exist() -> None:
    source = "\n".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    named = re.findall(r"`(?:[A-Z]\w+\.)?(_?[A-Za-z]\w+)`", GUIDE.partition("## How to add a strategy")[2])
    assert len(set(named)) > 30
    assert [name for name in sorted(set(named)) if not re.search(rf"\b{name}\b", source)] == []


def renamed_settings() -> list[tuple[str, str]]:
    """Old and new settings of ParallelConfig, as the table of changes has them."""
    table = CHANGES.partition("Fields of `ParallelConfig`:")[2].partition("Options of")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| `")]
    return [
        (old, new) for old_cell, new_cell in rows for old, new in zip(codes(old_cell), codes(new_cell), strict=False)
    ]


def codes(cell: str) -> list[str]:
    return [code.replace("=...", "=8") for code in re.findall(r"`([^`]*=[^`]*)`", cell)]


def test_renamed_settings_are_as_the_changelog_says() -> None:
    pairs = renamed_settings()
    assert len(pairs) >= 6
    names = {"PublishedSettings": PublishedSettings, "ParallelConfig": ParallelConfig}
    for old, new in pairs:
        of_hybrid = "" if "strategy" in new else "'hybrid', "
        assert eval(f"ParallelConfig({of_hybrid}{new})", names)
        with pytest.raises((TypeError, ValueError)):
            eval(f"ParallelConfig({old})", names)


def test_the_changelog_has_this_version() -> None:
    assert f"## [{hybridiff.__version__}]" in CHANGES


def test_the_page_of_pipelines_has_a_row_for_every_specimen() -> None:
    rows, specimens = read_rows(PAGE.read_text()).keys(), {title(name) for name in ZOO}
    assert specimens <= rows
    assert rows - specimens <= {"Kolors", "KolorsPAG"}, "which need sentencepiece"
