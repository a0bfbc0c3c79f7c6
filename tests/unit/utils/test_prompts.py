from __future__ import annotations

from pathlib import Path

import pytest

from hybridiff import UsageError
from hybridiff.utils.prompts import Prompt, read_prompts


def test_plain_and_json_lines_mix_and_empty_ones_are_skipped(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text(
        'a red ring\n\n  {"prompt": "ein Bär", "seed": 7, "negative_prompt": "blue"}\n[1] is text\n', "utf-8"
    )
    assert read_prompts(file) == [Prompt("a red ring"), Prompt("ein Bär", 7, "blue"), Prompt("[1] is text")]


def test_one_json_list_is_as_good(tmp_path: Path) -> None:
    file = tmp_path / "prompts.json"
    file.write_text('[\n  " a red ring",\n  {"prompt": "ein Bär", "seed": 7}\n]\n', "utf-8")
    assert read_prompts(file) == [Prompt("a red ring"), Prompt("ein Bär", 7)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no prompt"),
        (b" \n\n", "holds no prompt"),
        (b"\xff\xfe", "it is not UTF-8 text"),
        (b'a ring\n{"prompt": "x",\n', "line 2: not a JSON object"),
        (b'{"prompt": "x", "sed": 1}', "line 1: unknown key 'sed'; known are prompt, seed, negative_prompt"),
        (b'\n\n{"prompt": "x", "seed": "1"}', "line 3: seed must be an integer, got '1'"),
        (b'{"prompt": "x", "seed": true}', "line 1: seed must be an integer, got True"),
        (b'{"prompt": "x", "seed": -1}', "line 1: seed must be from 0 to 2\\*\\*64 - 1, got -1"),
        (
            b'{"prompt": "x", "seed": 18446744073709551616}',
            "line 1: seed must be from 0 to .*, got 18446744073709551616",
        ),
        (b'{"seed": 1}', "line 1: there is no prompt"),
        (b'{"prompt": 3}', "line 1: prompt must be text, got 3"),
        (b"[]", "holds no prompt"),
        (b'[\n"a ring",\n"a cube",\n]', "line 4: not a JSON list"),
        (b'["a ring", ""]', "item 2: there is no prompt"),
        (b'["a ring", 3]', "item 2: must be text or an object with a prompt, got 3"),
    ],
)
def test_bad_files_are_refused_with_the_line(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read_prompts(file)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        read_prompts(tmp_path / "nowhere.txt")
    with pytest.raises(UsageError, match="Is a directory"):
        read_prompts(tmp_path)
