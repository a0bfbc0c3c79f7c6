from __future__ import annotations

import json
import wave
from pathlib import Path
from typing import Any

import imageio
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from hybridiff.cli.media import as_picture
from hybridiff.cli.output import Output
from hybridiff.errors import UsageError
from hybridiff.launch.protocol import Generation
from support.reports import report

FACTS: dict[str, Any] = {"model": "tiny", "prompt": "a ring", "settings": {"num_frames": 5}}


def films(form: str) -> Any:
    """Two films of five frames, which grow brighter."""
    frames = np.linspace(0, 1, 5, dtype=np.float32)[None, :, None, None, None] * np.ones((2, 5, 20, 36, 3), np.float32)
    if form == "np":
        return frames
    if form == "pt":
        return torch.from_numpy(frames).permute(0, 1, 4, 2, 3)
    return [[Image.fromarray((frame * 255).astype(np.uint8)) for frame in film] for film in frames]


@pytest.mark.parametrize("form", ["pil", "np", "pt"])
def test_films_of_any_form_are_written_frame_by_frame(tmp_path: Path, form: str) -> None:
    made = Generation(None, report([0.25]), seed=3, frames=films(form))
    paths = Output.parse(str(tmp_path / "ring.mp4"), "frames").write(made, FACTS, fps=8)
    assert [path.name for path in paths] == ["ring.mp4", "ring-1.mp4", "ring.json", "ring-discrepancy.png"]
    with imageio.get_reader(paths[1]) as film:
        assert film.count_frames() == 5
        assert film.get_meta_data()["fps"] == 8
        assert film.get_meta_data()["size"] == (36, 20)
        assert film.get_data(4).mean() > 240 > 20 > film.get_data(0).mean()
    written = json.loads((tmp_path / "ring.json").read_text())
    assert (written["frames"], written["seed"]) == (["ring.mp4", "ring-1.mp4"], 3)


def test_a_film_may_be_a_gif(tmp_path: Path) -> None:
    made = Generation(None, report([0.25]), seed=3, frames=films("np")[:1])
    path = Output.parse(str(tmp_path / "ring.gif"), "frames").write(made, FACTS, fps=4)[0]
    with Image.open(path) as gif:
        assert (gif.n_frames, gif.info["duration"]) == (5, 250)


@pytest.mark.parametrize("channels", [1, 2])
def test_a_sound_is_a_wav_with_its_sampling_rate(tmp_path: Path, channels: int) -> None:
    samples = torch.linspace(-1.5, 1, 100).expand(channels, 100)
    made = Generation(None, report([0.25]), seed=3, audios=samples[None], sampling_rate=44_100)
    path = Output.parse(f"{tmp_path}/", "audios").write(made, FACTS)[0]
    assert path == tmp_path / "audio.wav"
    with wave.open(str(path)) as sound:
        assert (sound.getframerate(), sound.getnchannels(), sound.getnframes()) == (44_100, channels, 100)
        written = np.frombuffer(sound.readframes(100), "<i2").reshape(100, channels)
    assert (written[0, 0], written[-1, 0]) == (-32767, 32767)


def test_the_sound_of_a_film_lies_beside_it(tmp_path: Path) -> None:
    made = Generation(None, report([0.25]), seed=3, frames=films("pil")[:1], audios=torch.zeros(1, 2, 50))
    paths = Output.parse(str(tmp_path / "ring.mp4"), "frames").write(made, FACTS)
    assert [path.name for path in paths[:2]] == ["ring.mp4", "ring.wav"]


def test_latents_are_written_with_how_they_were_made(tmp_path: Path) -> None:
    latents = torch.randn(2, 16, 2, 4, 4)
    made = Generation(None, report([0.25]), seed=3, frames=latents)
    paths = Output.parse(str(tmp_path / "ring.safetensors"), "frames", latents=True).write(made, FACTS)
    assert [path.name for path in paths] == ["ring.safetensors", "ring.json", "ring-discrepancy.png"]
    with safe_open(paths[0], "pt") as file:
        assert torch.equal(file.get_tensor("latents"), latents)
        assert (file.metadata()["prompt"], file.metadata()["seed"]) == ("a ring", "3")


@pytest.mark.parametrize(
    ("path", "kind", "latents", "message"),
    [
        ("ring.png", "frames", False, "cannot write a video as 'ring.png'; use one of .mp4, .gif"),
        ("ring.mp4", "images", False, "cannot write an image as 'ring.mp4'; use one of .png"),
        ("ring.mp4", "audios", False, "cannot write a sound as 'ring.mp4'; use one of .wav"),
        ("ring.png", "images", True, "cannot write latents as 'ring.png'; use one of .safetensors"),
    ],
)
def test_what_a_kind_is_not_written_as_is_refused(path: str, kind: str, latents: bool, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Output.parse(path, kind, latents)


def test_a_folder_stands_for_a_file_named_after_its_kind(tmp_path: Path) -> None:
    names = [Output.parse(str(tmp_path), kind).path.name for kind in ("images", "frames", "audios")]
    assert names == ["image.png", "video.mp4", "audio.wav"]
    assert Output.parse(str(tmp_path), "frames", latents=True).path.name == "latents.safetensors"


def test_an_mp4_without_its_writer_is_refused_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hybridiff.cli.media.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'hybridiff\[video\]'"):
        Output.parse("ring.mp4", "frames")
    Output.parse("ring.gif", "frames")


def test_gray_pictures_are_pictures() -> None:
    assert as_picture(np.zeros((4, 6, 1))).mode == "L"
    assert as_picture(torch.ones(3, 4, 6)).getpixel((0, 0)) == (255, 255, 255)
