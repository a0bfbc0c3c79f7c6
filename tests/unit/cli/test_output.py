from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.ExifTags import IFD, Base

import hybridiff
from hybridiff.cli.output import Output, progress_bar
from hybridiff.errors import UsageError
from hybridiff.launch.protocol import Generation
from hybridiff.report.timeline import Span
from support.reports import report

FACTS: dict[str, Any] = {"model": "tiny", "prompt": "ein roter Ring — ✓", "settings": {"guidance_scale": 2.0}}


def generation(images: int) -> Generation:
    return Generation([Image.new("RGB", (8, 8), "red") for _ in range(images)], report([0.25]), seed=11)


@pytest.mark.parametrize(
    ("path", "folder", "stem", "suffix"),
    [
        ("out/ring.png", "out", "ring", ".png"),
        ("ring.JPG", ".", "ring", ".JPG"),
        ("out/", "out", "image", ".png"),
        ("out/rings", "out/rings", "image", ".png"),
    ],
)
def test_paths_name_an_image_or_a_folder(path: str, folder: str, stem: str, suffix: str) -> None:
    assert Output.parse(path) == Output(Path(folder), stem, suffix)


def test_a_suffix_that_is_no_image_is_refused() -> None:
    with pytest.raises(UsageError, match=r"cannot write an image as 'ring.gif'; use one of .png"):
        Output.parse("out/ring.gif")


def test_several_prompts_are_numbered() -> None:
    output = Output(Path(), "ring", ".png")
    assert output.numbered(1, of=1) == output
    assert output.numbered(2, of=12).stem == "ring-002"
    assert output.numbered(2, of=1200).stem == "ring-0002"


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot write to the output folder"):
        Output(tmp_path / "file" / "folder", "ring", ".png").prepare()
    Output(tmp_path / "a" / "b", "ring", ".png").prepare()
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_one_image_is_written_with_report_and_curve(tmp_path: Path) -> None:
    paths = Output(tmp_path, "ring", ".png").write(generation(1), FACTS)
    assert [path.name for path in paths] == ["ring.png", "ring.json", "ring-discrepancy.png"]
    written = json.loads((tmp_path / "ring.json").read_text())
    assert {"strategy", "tau1", "tau2", "seconds", "steps"} <= written.keys()
    step = {"index": 0, "phase": "warm-up", "discrepancy": 0.25, "seconds": 0.5, "bytes": 40}
    assert step.items() <= written["steps"][0].items()
    assert (written["seed"], written["prompt"], written["images"]) == (11, FACTS["prompt"], ["ring.png"])


def test_several_images_come_with_a_sheet(tmp_path: Path) -> None:
    paths = Output(tmp_path, "ring", ".jpg").write(generation(3), FACTS)
    assert [path.name for path in paths[:4]] == ["ring.jpg", "ring-1.jpg", "ring-2.jpg", "ring-sheet.jpg"]
    assert all(path.stat().st_size for path in paths)
    assert json.loads((tmp_path / "ring.json").read_text())["images"] == ["ring.jpg", "ring-1.jpg", "ring-2.jpg"]


def test_png_images_carry_how_they_were_made_as_text(tmp_path: Path) -> None:
    paths = Output(tmp_path, "ring", ".png").write(generation(2), FACTS | {"negative_prompt": "blue"})
    for path in paths[:3]:  # the sheet too
        text = Image.open(path).text
        assert (text["prompt"], text["negative_prompt"], text["seed"]) == (FACTS["prompt"], "blue", "11")
        assert (text["model"], text["hybridiff"]) == ("tiny", hybridiff.__version__)
        assert json.loads(text["settings"]) == FACTS["settings"]


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_other_images_carry_it_in_their_exif_comment(tmp_path: Path, suffix: str) -> None:
    path = Output(tmp_path, "ring", suffix).write(generation(1), FACTS)[0]
    comment = Image.open(path).getexif().get_ifd(IFD.Exif)[Base.UserComment]
    made = json.loads(comment.removeprefix(b"ASCII\0\0\0"))
    assert (made["prompt"], made["seed"], made["hybridiff"]) == (FACTS["prompt"], "11", hybridiff.__version__)
    assert json.loads(made["settings"]) == FACTS["settings"]


def test_a_trace_goes_where_it_was_asked_for(tmp_path: Path) -> None:
    traced = generation(1)
    traced.report.spans.append(Span(rank=0, name="whole", category="stage", start=1.0, seconds=0.5))
    trace = Output.file(str(tmp_path / "new" / "trace.json"), ".json")
    path = trace.numbered(2, 3).write_trace(traced)
    assert path == tmp_path / "new" / "trace-002.json"
    assert json.loads(path.read_text())["traceEvents"]
    for wrong in (tmp_path, tmp_path / "trace.txt"):
        with pytest.raises(UsageError, match=r"\.json file"):
            Output.file(str(wrong), ".json")


def test_the_progress_bar_appears_with_the_first_step_and_on_one_rank(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar():
        pass
    with progress_bar(is_shown=False) as show:
        show("images", 1, 2)
    assert capsys.readouterr().err == ""
    with progress_bar() as show:
        show("full steps", 1, 4)
        show("images", 4, 4)
    assert "images: 100%" in capsys.readouterr().err
