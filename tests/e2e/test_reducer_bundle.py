"""A bundle whose quantizer is another paper's reducer answers, writes files and reads them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from vqedge.errors import VqedgeError
from vqedge.model.checkpoint import open_checkpoint
from vqedge_export.assemble import assemble_bundle
from vqedge_export.onnx_export import write_graph
from vqedge_runtime import VideoQA


@pytest.fixture(scope="module")
def reducing_qa(
    checkpoint: Path, vit_source: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[VideoQA]:
    """models/tiny with PruMerge+ in the place of k-means; it was not trained for it."""
    folder = tmp_path_factory.mktemp("prumerge")
    copy = Path(shutil.copytree(checkpoint, folder / "checkpoint"))
    config = json.loads((copy / "config.json").read_text())
    config["quantizer"]["kind"] = "reducer:prumerge+"
    (copy / "config.json").write_text(json.dumps(config))
    write_graph(open_checkpoint(copy), vit_source)
    bundle = assemble_bundle(copy, folder / "prumerge.vqedge").root
    with VideoQA.open(bundle, encoder="onnxruntime") as session:
        yield session


def test_it_answers_about_a_video_and_its_file_alike(
    reducing_qa: VideoQA, demo_clip: Path, tmp_path: Path
) -> None:
    video = reducing_qa.encode(demo_clip, 16)
    assert 1 < video.tokens.count <= 16
    reducing_qa.save(video, tmp_path / "demo.vqt")
    stored = reducing_qa.encode(tmp_path / "demo.vqt")
    assert np.array_equal(stored.tokens.rows, video.tokens.rows)
    question = "what color is the circle?"
    answers = [reducing_qa.ask(each, question) for each in (video, stored)]
    assert answers[0].text and answers[0].text == answers[1].text
    assert answers[0].tokens == video.tokens.count


def test_it_has_no_adaptive_budget(reducing_qa: VideoQA, demo_clip: Path) -> None:
    with pytest.raises(VqedgeError, match="auto"):
        reducing_qa.encode(demo_clip, "auto")
