"""CONTRIBUTING.md and CHANGELOG.md: what they name is there."""

from __future__ import annotations

import re
from pathlib import Path

import hybridiff

ROOT = Path(__file__).parents[2]
PACKAGE = Path(hybridiff.__file__).parent
GUIDE = (ROOT / "CONTRIBUTING.md").read_text()


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
