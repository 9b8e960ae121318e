"""Pictures of feature maps: literal arrays, and damaged ones."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from billhook.report import write_report
from billhook.report.feature_maps import map_pictures
from billhook.report.masks import KEPT, LINE
from billhook.report.read import Run

MAPS = np.zeros((2, 3, 4, 4), dtype=np.uint8)
MAPS[0, 0], MAPS[1, 0, 0, 0], MAPS[0, 1], MAPS[1, 2] = 255, 100, 40, 7
KEPT_OF = np.array([[0, 5, 9], [1, 0, 1]])


def pictures(**data):
    return map_pictures(Run({}, None, [], 0, {}, {name.replace("__", "/"): array for name, array in data.items()}))


def pixels(uri: str) -> np.ndarray:
    held = io.BytesIO(base64.b64decode(uri.partition(",")[2]))
    return np.asarray(Image.open(held).convert("RGBA"))


def test_two_rows_of_maps() -> None:
    (found,) = pictures(maps__a=MAPS, maps_kept__a=KEPT_OF)
    assert found.name == "a"
    assert found.caption == "channels 0, 5, 9; 1 of these is gone"
    shown = pixels(found.uri)
    assert shown.shape[:2] == (found.height, found.width) == (2 * 72 + 4, 3 * 72 + 2 * 4)
    assert shown[10, 10].tolist() == [*KEPT, 255]
    assert shown[76, 0].tolist() == [*KEPT, 100]
    assert shown[76 + 18, 0, 3] == 0  # the next value of that map
    assert shown[10, 76 + 10, 3] == 40
    # The channel that is gone is a frame.
    assert shown[76, 76 + 30].tolist() == list(LINE)
    assert shown[76 + 30, 76 + 30, 3] == 0
    assert shown[76 + 30, 2 * 76 + 30, 3] == 7


@pytest.mark.parametrize(
    ("maps", "kept"),
    [
        (MAPS[:1], KEPT_OF), (MAPS[0], KEPT_OF), (MAPS.astype(float), KEPT_OF), (MAPS[:, :0], KEPT_OF[:, :0]),
        (MAPS, KEPT_OF[:, :2]), (MAPS, KEPT_OF.astype(float)), (MAPS, KEPT_OF[0]),
    ],
)  # fmt: skip
def test_damaged_maps_are_left_out(maps: np.ndarray, kept: np.ndarray) -> None:
    assert pictures(maps__a=maps, maps_kept__a=kept) == []
    assert pictures(maps__a=MAPS) == []


def test_on_the_page(channel_directory: Path) -> None:
    assert 'id="maps"' not in write_report(channel_directory).read_text()
    with np.load(channel_directory / "report_data.npz") as data:
        whole = dict(data)
    np.savez(channel_directory / "report_data.npz", **whole, **{"maps/<b>": MAPS, "maps_kept/<b>": KEPT_OF})
    text = write_report(channel_directory).read_text()
    assert "Feature maps, before and after" in text
    assert "&lt;b&gt;" in text
