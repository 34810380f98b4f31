"""What a photo's file may not do: name other files, or be read by its name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from test_photos import write_png

from vqedge.data.photos import Photo, photos_from_index
from vqedge.errors import DatasetError, VideoError

PLAYLISTS = {
    "ffconcat": "ffconcat version 1.0\nfile secret.png\n",
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.png\n#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile 'file:{}/secret.png'\n",
}


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    write_png(tmp_path / "secret.png", np.full((24, 36, 3), 200, np.uint8))
    return tmp_path / "secret.png"


@pytest.mark.parametrize("kind", PLAYLISTS)
@pytest.mark.parametrize("name", ["a.png", "a.ffconcat", "a.m3u8"])
def test_a_playlist_is_no_photo(secret: Path, kind: str, name: str) -> None:
    path = secret.with_name(name)
    path.write_text(PLAYLISTS[kind].format(secret.parent))
    with pytest.raises(VideoError, match=f"{name}: not a readable photo"):
        Photo(path, "cup").pixels()


def test_a_name_is_no_protocol(secret: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(secret.parent)
    assert Photo(Path("secret.png"), "cup").pixels().shape == (24, 36, 3)
    Path("concat:secret.png").touch()
    with pytest.raises(VideoError, match="not a readable photo"):
        Photo(Path("concat:secret.png"), "cup").pixels()


def test_a_line_of_an_index_says_a_thing_once(secret: Path) -> None:
    index = secret.with_name("index.jsonl")
    line = json.dumps({"file": secret.name, "label": "cup", "text": "cup"})
    index.write_text(line)
    assert photos_from_index(index, "train") == [Photo(secret, "cup")]
    index.write_text(line.replace("}", ', "text": "hat"}'))
    with pytest.raises(DatasetError, match=r"index\.jsonl:1: a key is repeated: 'text'"):
        photos_from_index(index, "train")
