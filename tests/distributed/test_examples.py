"""The examples: each runs as a user would run it, and gives what it promises."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.distributed

EXAMPLES = Path(__file__).parents[2] / "examples"
SIDE = (128, 128)
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def run(folder: Path, *command: str) -> str:
    """What Python prints for a command, in an empty folder."""
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, capture_output=True, text=True, timeout=150, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_example(name: str, folder: Path) -> str:
    return run(folder, str(EXAMPLES / name), "images")


def pixels(path: Path) -> np.ndarray:
    """An image as numbers; it has the size of the embedded models, and is not of one colour."""
    image = Image.open(path)
    assert image.size == SIDE
    found = np.asarray(image.convert("RGB")).astype(float)
    assert found.std() > 5
    return found


def speedup(printed: str) -> float:
    found = re.search(r"2 devices, ideal speed-up ([\d.]+)x", printed)
    assert found, printed
    return float(found[1])


@pytest.mark.slow
def test_a_script_with_an_engine_needs_no_main_guard(tmp_path: Path) -> None:
    assert "__name__ ==" not in re.sub('""".*?"""', "", (EXAMPLES / "generate.py").read_text(), flags=re.DOTALL)
    assert speedup(run_example("generate.py", tmp_path)) > 2
    pixels(tmp_path / "images" / "generate.png")


@pytest.mark.slow
def test_under_torchrun_rank_0_saves_and_prints(tmp_path: Path) -> None:
    printed = run(tmp_path, *TORCHRUN, str(EXAMPLES / "torchrun.py"), "images")
    assert printed.count("torchrun.png") == 1
    assert speedup(printed) > 2
    pixels(tmp_path / "images" / "torchrun.png")


def test_image_to_image_runs_the_last_steps(tmp_path: Path) -> None:
    assert "2 devices, 20 steps" in run_example("image_to_image.py", tmp_path)
    sketch, image = (pixels(tmp_path / "images" / f"{name}.png") for name in ("sketch", "image-to-image"))
    assert np.abs(image - sketch).mean() > 5


def test_a_merged_lora_changes_the_image(tmp_path: Path) -> None:
    printed = run_example("lora.py", tmp_path)
    assert "2 devices, 136 merged layers" in printed
    assert "'promised': 45" in printed
    without, merged = (pixels(tmp_path / "images" / f"{name}.png") for name in ("without-lora", "lora"))
    assert np.abs(merged - without).mean() > 2


@pytest.mark.slow
def test_a_scheduler_of_the_users_own_is_noted(tmp_path: Path) -> None:
    printed = run_example("custom_scheduler.py", tmp_path)
    assert speedup(printed) > 2
    assert "the nearest to DPMSolverMultistepScheduler with 20" in printed
    pixels(tmp_path / "images" / "custom-scheduler.png")


@pytest.mark.slow
def test_the_notebooks_cells_run_in_order(tmp_path: Path) -> None:
    cells = code_cells()
    script = tmp_path / "notebook.py"
    script.write_text("\n".join(cells))
    assert speedup(run(tmp_path, str(script))) > 2
    images = tmp_path / "out" / "examples"
    assert Image.open(images / "notebook.png").height == SIDE[1]
    assert Image.open(images / "notebook-discrepancy.png").width > 500


def test_the_notebook_is_valid_and_clean() -> None:
    notebook = json.loads((EXAMPLES / "notebook.ipynb").read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    names = [cell["id"] for cell in notebook["cells"]]
    assert len(set(names)) == len(names)
    for cell in notebook["cells"]:
        assert cell["cell_type"] in ("code", "markdown")
        assert cell["metadata"] == {}
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
    assert not any("__name__" in cell for cell in code_cells())


def test_the_table_names_every_example() -> None:
    table = (EXAMPLES / "README.md").read_text()
    named = set(re.findall(r"\]\(([\w.]+)\)", table))
    assert named == {file.name for file in EXAMPLES.iterdir() if file.suffix in (".py", ".ipynb")}


def code_cells() -> list[str]:
    notebook = json.loads((EXAMPLES / "notebook.ipynb").read_text())
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
