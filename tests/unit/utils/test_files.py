from __future__ import annotations

from pathlib import Path

import pytest

from hybridiff.utils.files import write_whole


def test_what_was_written_is_read_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    for text in ("one\n", "äöü, longer than before\n", ""):
        write_whole(path, text)
        assert path.read_text(encoding="utf-8") == text
        assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.json"
    write_whole(path, "before")

    def full(*_: object, **__: object) -> int:
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="no space left"):
        write_whole(path, "after")
    assert path.read_bytes() == b"before"
