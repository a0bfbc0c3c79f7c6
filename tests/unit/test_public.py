"""What the package shows, and which way its imports go."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hybridiff

PACKAGE = Path(hybridiff.__file__).parent

# From the top down: a module imports from lower layers and from its own only.
LAYERS = [
    {"__main__", "cli", "server"},
    {"demo", "options"},
    {"worker"},
    {"engine", "benchmark", "evaluate", "output", "plots"},
    {"ranks", "messages"},
    {"parallel", "models"},
    {"run"},
    {"strategies"},
    {"schedule"},
    {"denoiser"},
    {"channel", "agreement"},
    {"comm", "trace"},
    {"critical_path", "presets"},
    {"guidance", "switching", "forecast", "influence", "calibration"},
    {"config"},
]
LAYER_OF = {module: level for level, modules in enumerate(LAYERS) for module in modules}


def imports_of(source: Path) -> set[str]:
    """Modules and folders of the package that a file imports at its top, by their first name."""
    depth = len(source.relative_to(PACKAGE).parts)
    found: set[str] = set()
    for node in ast.parse(source.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.level == depth:
            found |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
    return found - {"__version__"}


CORE = sorted(
    path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).parts[0].removesuffix(".py") in LAYER_OF
)


@pytest.mark.parametrize("source", CORE, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(source: Path) -> None:
    own = source.relative_to(PACKAGE).parts[0].removesuffix(".py")
    upward = [name for name in imports_of(source) if LAYER_OF.get(name, len(LAYERS)) < LAYER_OF[own]]
    assert upward == []


def test_the_layers_hold_every_module_of_the_core() -> None:
    core = {
        "parallel",
        "run",
        "strategies",
        "denoiser",
        "channel",
        "agreement",
        "comm",
        "trace",
        "guidance",
        "switching",
        "schedule",
        "calibration",
        "influence",
    }
    assert core <= {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in CORE}
    assert imports_of(PACKAGE / "run.py") >= {"channel", "comm", "strategies", "trace"}


@pytest.mark.parametrize("module", ["hybridiff", "hybridiff.config", "hybridiff.cli"])
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
