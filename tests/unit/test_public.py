"""What the package shows, and which way its imports go."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hybridiff

PACKAGE = Path(hybridiff.__file__).parent

# From the top down: a room imports from rooms below it and from itself only.
ROOMS = [
    "rivals",  # which nobody imports
    "__main__",
    "cli",
    "evaluation",
    "launch",
    "pipeline",
    "run",
    "learner",
    "beginning",
    "running_step",
    "stock_call",
    "agreement",
    "strategies",
    "sharding",
    "distributed",
    "report",
    "schedule",
    "models",
    "denoiser",
    "numerics",
    "arguments",
    "config",
    "utils",
    "errors",
    "__init__",
]
MODULES = sorted(PACKAGE.rglob("*.py"))


def room_of(source: Path) -> str:
    """The room of a module: its top folder, or its own name at the top of the package."""
    return source.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(source: Path) -> set[str]:
    """Rooms that a module imports anywhere in it, functions and `TYPE_CHECKING` blocks included."""
    folder = ["hybridiff", *source.relative_to(PACKAGE).parts[:-1]]
    found: set[str] = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = folder[: len(folder) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "hybridiff" else [module]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("hybridiff.")}
    return {name if name in ROOMS else "__init__" for name in found}


@pytest.mark.parametrize("source", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downwards(source: Path) -> None:
    if source == PACKAGE / "__init__.py":  # the front door loads public names from everywhere, on first use
        return
    own = ROOMS.index(room_of(source))
    assert [name for name in imports_of(source) if ROOMS.index(name) < own] == []


def test_what_several_measurements_share_needs_none_of_them() -> None:
    folder = PACKAGE / "evaluation"
    packages = "|".join(path.parent.name for path in folder.glob("*/__init__.py"))
    assert [path.name for path in folder.glob("*.py") if re.search(rf"from \.({packages})\b", path.read_text())] == []


def test_every_module_has_a_room_and_every_room_is_there() -> None:
    assert {room_of(source) for source in MODULES} == set(ROOMS)


def test_imports_are_seen_wherever_they_stand() -> None:
    assert imports_of(PACKAGE / "run.py") >= {"distributed", "strategies", "report"}
    assert "launch" in imports_of(PACKAGE / "cli" / "generate.py")  # inside functions only
    assert "models" in imports_of(PACKAGE / "launch" / "worker.py")


@pytest.mark.parametrize("module", ["hybridiff", "hybridiff.config", "hybridiff.cli.main", "hybridiff.launch.engine"])
def test_importing_does_not_import_torch(module: str) -> None:
    code = f"import sys, {module}; print(sorted({{'torch', 'diffusers', 'transformers'}} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_every_public_name_is_there_and_documented() -> None:
    assert hybridiff.__all__ == sorted(hybridiff.__all__)
    assert set(hybridiff.__all__) == set(hybridiff._MODULES)
    for name in hybridiff.__all__:
        assert getattr(hybridiff, name).__name__ == name
        assert getattr(hybridiff, name).__doc__


def test_unknown_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'magic'"):
        hybridiff.magic  # noqa: B018
