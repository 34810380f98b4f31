"""A bundle whose quantizer is another paper's reducer answers, writes files and reads them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from vqedge.checkpoint import CONFIG, model_config_of
from vqedge.errors import VqedgeError
from vqedge.model.checkpoint import MODEL, open_checkpoint
from vqedge.model.llm import llm_from_gguf, mean_embeddings, tokenizer_from_gguf
from vqedge.model.reducers.training import REDUCER_PREFIX, ReducerWithWeights
from vqedge_export.assemble import assemble_bundle
from vqedge_export.onnx_export import write_graph
from vqedge_runtime import VideoQA

pytestmark = pytest.mark.slow  # each of its bundles is made for it


def copy_of_kind(checkpoint: Path, folder: Path, kind: str) -> Path:
    """A checkpoint with another quantizer's name in it."""
    copy = Path(shutil.copytree(checkpoint, folder / "checkpoint"))
    config = json.loads((copy / CONFIG).read_text())
    config["quantizer"]["kind"] = kind
    (copy / CONFIG).write_text(json.dumps(config))
    return copy


def opened(checkpoint: Path, vit_source: Path) -> VideoQA:
    """A checkpoint as a bundle beside it, ready to be asked."""
    write_graph(open_checkpoint(checkpoint), vit_source)
    bundle = assemble_bundle(checkpoint, checkpoint.with_name("made.vqedge")).root
    return VideoQA.open(bundle, encoder="onnxruntime")


@pytest.fixture(scope="module")
def reducing_qa(
    checkpoint: Path, vit_source: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[VideoQA]:
    """models/tiny with PruMerge+ in the place of k-means; it was not trained for it."""
    copy = copy_of_kind(checkpoint, tmp_path_factory.mktemp("prumerge"), "reducer:prumerge+")
    with opened(copy, vit_source) as session:
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


# ---- tokens that follow the question


@pytest.fixture(scope="module")
def asking_qa(
    checkpoint: Path, vit_source: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[VideoQA]:
    """models/tiny with random windows that are asked in the place of k-means."""
    copy = copy_of_kind(checkpoint, tmp_path_factory.mktemp("asking"), "reducer:query-window")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        windows = ReducerWithWeights(model_config_of(copy)).kept().state_dict()
    drawn = {f"{REDUCER_PREFIX}{name}": value.half() for name, value in windows.items()}
    with safe_open(copy / MODEL, framework="pt") as file:
        info = file.metadata()
    save_file(load_file(copy / MODEL) | drawn, copy / MODEL, info)
    with opened(copy, vit_source) as session:
        yield session


def test_a_clip_has_other_tokens_for_another_question(asking_qa: VideoQA, demo_clip: Path) -> None:
    video = asking_qa.encode(demo_clip)
    assert asking_qa.manifest.quantizer.per_question and video.tokens.count == 0
    questions = ("what color is the circle?", "how many objects are there?")
    answers = [asking_qa.ask(video, question) for question in questions]
    keys = [answer.video.tokens.key() for answer in answers]
    assert keys[0] != keys[1] and all(answer.tokens == 32 and answer.text for answer in answers)
    together = asking_qa.ask_many([(video, question) for question in questions])
    assert [answer.video.tokens.key() for answer in together] == keys
    assert [answer.text for answer in together] == [answer.text for answer in answers]


def test_the_device_asks_what_training_asks(
    asking_qa: VideoQA, demo_clip: Path, base_gguf: Path
) -> None:
    """The bundle's table is quantised anew: its rows are close to those that were trained on."""
    question = "what color is the circle?"
    found = asking_qa.llm.question_embedding(question)
    ids = torch.tensor([tokenizer_from_gguf(base_gguf).words(question)])
    wanted = mean_embeddings(llm_from_gguf(base_gguf), ids)[0].numpy()
    cosine = found @ wanted / np.linalg.norm(found) / np.linalg.norm(wanted)
    print(f"cosine {cosine:.6f}, max {np.abs(found - wanted).max():.2e}")
    assert cosine > 0.999
