from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hybridiff import UsageError
from hybridiff.models.controlnets import find_controlnets
from hybridiff.models.loras import find_loras
from hybridiff.models.sources import find_path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the hub is asked for: it has all of `owner/name`, and nothing else."""
    asked: list[tuple[Any, ...]] = []

    def download(name: str, file: str | None = None, allow_patterns: Any = None) -> str:
        asked.append((name, file or allow_patterns))
        if name != "owner/name":
            raise OSError("404, over\nmany lines")
        return "/cache" if file is None else f"/cache/{file}"

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    return asked


def test_a_path_comes_before_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[tuple[Any, ...]]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_path("thing", "owner/name", ["*.json"]) == Path("/cache")
    assert find_path("thing", "owner/name/a.safetensors", ["*.json"]) == Path("/cache/a.safetensors")
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert find_path("thing", "owner/name", ["*.json"]) == tmp_path / "owner" / "name"
    assert asked == [("owner/name", ["*.json"]), ("owner/name", "a.safetensors")]


@pytest.mark.parametrize(
    "name", ["./a/b", "/nowhere", "~/none", "a", "a/b/c", "a/b.safetensors", "a/b/c/d.safetensors"]
)
def test_what_is_no_hub_id_is_not_asked_for(name: str, asked: list[tuple[Any, ...]]) -> None:
    with pytest.raises(UsageError, match=r"^no thing '.*': no such file or folder, and not a hub id \(owner/name\)$"):
        find_path("thing", name, [])
    assert asked == []


def test_loras_and_controlnets_say_what_the_hub_said(asked: list[tuple[Any, ...]]) -> None:
    pytest.importorskip("peft")
    with pytest.raises(UsageError, match=r"^no LoRA 'a/b': .* and the hub gave none \(404, over many lines\)$"):
        find_loras(["a/b:0.5"])
    with pytest.raises(UsageError, match=r"^no ControlNet 'a/b': .* and the hub gave none \(404, over many lines\)$"):
        find_controlnets(["a/b"])
    assert find_loras(["owner/name/a.safetensors:0.5"])[0].path == "/cache/a.safetensors"
