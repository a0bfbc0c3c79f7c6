"""Captions in COCO's format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hybridiff.errors import UsageError
from hybridiff.utils.captions import read_captions
from hybridiff.utils.prompts import Prompt

COCO = {
    "info": {"year": 2014},
    "images": [{"id": 9, "file_name": "9.jpg"}, {"id": 3}, {"id": 5}],
    "annotations": [
        {"image_id": 9, "id": 4, "caption": "a dog\nruns "},
        {"image_id": 3, "id": 8, "caption": "a second cat"},
        {"image_id": 3, "id": 2, "caption": "a cat"},
    ],
}


def write(folder: Path, content: Any) -> Path:
    path = folder / "captions.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_each_image_has_its_first_caption_in_the_order_of_images(tmp_path: Path) -> None:
    assert read_captions(write(tmp_path, COCO)) == [Prompt("a cat"), Prompt("a dog runs")]


def test_other_files_are_files_of_prompts(tmp_path: Path) -> None:
    assert read_captions(write(tmp_path, '{"prompt": "a cat", "seed": 3}\na dog')) == [
        Prompt("a cat", 3),
        Prompt("a dog"),
    ]
    assert read_captions(write(tmp_path, '{"prompt": "a cat"}')) == [Prompt("a cat")]
    with pytest.raises(UsageError, match="cannot read the prompts file /nowhere"):
        read_captions("/nowhere.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"images": []}, "holds no annotations; give COCO's captions"),
        ({"annotations": {}}, "holds no annotations"),
        ({"annotations": [{"image_id": 1, "id": 1, "bbox": []}]}, "annotation 1: caption must be text, got None"),
        ({"annotations": [{"image_id": 1, "id": 1, "caption": " "}]}, "annotation 1: caption must be text, got ' '"),
        ({"annotations": [{"image_id": "1", "id": 1, "caption": "a"}]}, "image_id must be an integer, got '1'"),
        ({"annotations": [3]}, "annotation 1: image_id must be an integer"),
    ],
)
def test_what_is_malformed_is_named(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_captions(write(tmp_path, content))
