"""`vqedge import`, `export`, `ask`: a published layout becomes a bundle that answers."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sys
import unittest.mock
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import run_vqedge
from hf_maker import SPECIAL, write_llava

import vqedge.cli
from vqedge.bundle import open_bundle
from vqedge.commands.frames import read_frames, reader_of
from vqedge.data.demo import write_demo
from vqedge.errors import ConfigError
from vqedge.model.checkpoint import load_tensors, open_checkpoint
from vqedge.recipe import read_recipe
from vqedge.sampling import DEFAULT_RULE, FrameRule
from vqedge.train import train
from vqedge_export.assemble import assemble_bundle
from vqedge_export.hf.importing import checkpoint_from_folder
from vqedge_export.parity import encoder_parity
from vqedge_export.pipeline import export_bundle
from vqedge_runtime import VideoQA
from vqedge_runtime.evidence import find_evidence
from vqedge_runtime.llm import open_llama_cpp
from vqedge_runtime.video import clip_from_path

FRAMES, QUESTION = 4, "What moves?"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("import")
    write_demo(folder / "demo.mp4")
    write_llava(folder / "source")
    return folder


def told_here(*arguments: object) -> dict[str, Any]:
    """What a command says with `--json`, run in this process, where PyTorch is loaded already."""
    words = ["vqedge", *map(str, arguments), "--json"]
    out = io.StringIO()
    with (
        unittest.mock.patch.object(sys, "argv", words),
        contextlib.redirect_stdout(out),
        contextlib.suppress(SystemExit),
    ):
        vqedge.cli.main()
    document: dict[str, Any] = json.loads(out.getvalue().splitlines()[-1])
    return document


@pytest.fixture(scope="module")
def exported(work: Path) -> Path:
    """Both commands."""
    document = told_here("import", work / "source", "-o", work / "vqtoken", "--frames", FRAMES)
    assert document["attention"] == "official"
    assert all("post_layernorm" in name for name in document["ignored"])
    assert document["files"].keys() >= {"encoder.safetensors", "llm.gguf", "origin.json"}
    out = work / "vqtoken.vqedge"
    words = ("export", work / "vqtoken", "-o", out, "--llm-quant", "F16", "--record")
    parity = told_here(*words)["parity"]
    assert parity["encoder"]["ids_differ"] == 0 and parity["tolerance"] is not None
    return out


def test_the_bundle_says_what_it_was_made_of(exported: Path) -> None:
    manifest = open_bundle(exported).manifest
    assert manifest.encoder.source == "siglip"
    assert manifest.encoder.variants == (), "int8 is not the default of imported weights"
    assert manifest.encoder.rule == ("ends", "stretch-bicubic")
    assert manifest.llm.system_prompt == "You are a helpful assistant."
    assert (manifest.llm.arch, manifest.llm.chat_template) == ("qwen2", "chatml")
    for weights in manifest.provenance.base_weights:
        assert (weights.name, weights.licence) == ("source", "apache-2.0")
    notice = (exported / "LICENSES/NOTICE.txt").read_text()
    assert "source: apache-2.0; encoder.safetensors of an imported model" in notice


def test_others_may_read_what_was_imported(work: Path, exported: Path) -> None:
    (work / "new").touch()
    files = [path for path in (work / "vqtoken").iterdir() if path.is_file()]
    assert {path.stat().st_mode for path in files} == {(work / "new").stat().st_mode}


def test_ask_answers_the_same_again_and_again(work: Path, exported: Path) -> None:
    options = ("-m", exported, "--backend", "onnxruntime", "--json")
    first, second = (run_vqedge("ask", work / "demo.mp4", QUESTION, *options) for _ in range(2))
    assert first.returncode == 0, first.stderr
    document = json.loads(first.stdout.splitlines()[-1])
    assert document["answer"] == json.loads(second.stdout.splitlines()[-1])["answer"]
    assert document["tokens"] == 32 + 1, "max(T, K) rows and the newline"
    assert not any(token in document["answer"] for token in SPECIAL)


def test_frames_are_those_that_the_published_code_takes(work: Path, exported: Path) -> None:
    """By `ask`, by `encode` and by `eval` of the checkpoint."""
    demo, config = work / "demo.mp4", open_checkpoint(work / "vqtoken").config.encoder
    clip = clip_from_path(demo, FRAMES, config.size, rule=FrameRule("ends", "stretch-bicubic"))
    other = clip_from_path(demo, FRAMES, config.size)
    assert not np.array_equal(clip.frames_thwc, other.frames_thwc)
    read = reader_of(config)(demo, FRAMES, config.size, None, None)
    assert np.array_equal(read, clip.frames_thwc)
    with VideoQA.open(exported, encoder="onnxruntime") as qa:
        video, shown = qa.encode(demo), qa.encode_frames(clip.frames_thwc)
        words = ("encode", demo, "-o", work / "batch.vqt", "-m", exported)
        told_here(*words, "--backend", "onnxruntime")
        stored = qa.encode(work / "batch.vqt")
        assert video.times_s == clip.times_s
        assert stored.times_s == pytest.approx(clip.times_s)
        for found in (video, stored):
            assert np.array_equal(found.tokens.rows, shown.tokens.rows)


def test_asking_again_reads_the_question_alone(work: Path, exported: Path) -> None:
    with VideoQA.open(exported, encoder="onnxruntime") as qa:
        video = qa.encode(work / "demo.mp4", budget=2)
        assert video.tokens.count == FRAMES + 1, "fewer codes than frames"
        answer = qa.ask(video, QUESTION)
        again = qa.ask(video, QUESTION)
        assert again.text == answer.text
        assert qa.llm.prefill_video(video.rows).reused
        scores = qa.ask(video, QUESTION, choices=("a circle", "a square")).choice_scores
        assert sum(scores.values()) == pytest.approx(1)
        with pytest.raises(ConfigError, match="no token row of this bundle stands for"):
            find_evidence(qa.llm, video, QUESTION, "a circle")


def test_a_file_of_codes_gives_the_rows_of_its_video(work: Path, exported: Path) -> None:
    with VideoQA.open(exported, encoder="onnxruntime") as qa:
        video = qa.encode(work / "demo.mp4")
        qa.save(video, work / "demo.vqt")
        stored = qa.encode(work / "demo.vqt")
        assert np.array_equal(stored.tokens.rows, video.tokens.rows)


def test_assembling_without_torch_gives_the_same_files(work: Path, exported: Path) -> None:
    bundle = assemble_bundle(work / "vqtoken", work / "again.vqedge", quant="F16", precision="fp32")
    ours, theirs = (
        {file.path: file.sha256 for file in manifest.files}
        for manifest in (bundle.manifest, open_bundle(exported).manifest)
    )
    assert ours == theirs


@pytest.mark.parametrize(("mode", "rows"), [("codes", 9), ("paper", 8)])
def test_plain_llava_onevision(work: Path, tmp_path: Path, mode: str, rows: int) -> None:
    source = write_llava(tmp_path / "plain", attention=False)
    imported = checkpoint_from_folder(source, tmp_path / "plain-vq", mode=mode, frames=2)
    bundle, report = export_bundle(
        imported.path, tmp_path / "plain.vqedge", open_llama_cpp, quant="F16", precision="fp32"
    )
    assert report.encoder is not None and report.encoder.ids_differ == 0
    with VideoQA.open(bundle.root, encoder="onnxruntime") as qa:
        video = qa.encode(work / "demo.mp4", budget=8)
        assert video.tokens.count == rows
        if mode == "codes":
            codes = video.tokens.codes.values.astype(np.float32)
            assert np.array_equal(video.tokens.rows[:-1], codes)
        assert qa.ask(video, QUESTION).text


@pytest.mark.parametrize(
    ("attention", "reducer", "mode"),
    [(False, "vtm", "none"), (False, "prumerge", "none"), (True, "kmedoids", "official")],
)
def test_a_reducer_in_the_place_of_k_means(
    work: Path, tmp_path: Path, attention: bool, reducer: str, mode: str
) -> None:
    source = work / "source" if attention else write_llava(tmp_path / "plain", attention=False)
    out = tmp_path / "reduced"
    told = told_here("import", source, "-o", out, "--frames", FRAMES, "--reducer", reducer)
    assert (told["quantizer"], told["attention"]) == (f"reducer:{reducer}", mode)
    bundle, _ = export_bundle(
        out, tmp_path / "reduced.vqedge", open_llama_cpp, precision="fp32", check=False
    )
    parity = encoder_parity(open_checkpoint(out), bundle.root / "encoder.onnx", 4).encoder
    assert parity.ids_differ == 0 and parity.token_cosine > 0.9999
    with VideoQA.open(bundle.root, encoder="onnxruntime") as qa:
        video = qa.encode(work / "demo.mp4", budget=8)
        codes = video.tokens.codes.values.astype(np.float32)
        assert 1 < video.tokens.count <= 8 + 1, "a row a code, and the newline"
        if attention:
            lengths = np.linalg.norm(codes, axis=1)
            assert np.abs(lengths - 1).max() < 1e-2, "medoids of features of length one"
        else:
            assert np.array_equal(video.tokens.rows[:-1], codes)
        assert qa.ask(video, QUESTION).text


def test_training_on_imported_weights_leaves_a_checkpoint_that_exports(
    work: Path, tmp_path: Path
) -> None:
    """Two steps of bridge and adapter on Qwen2; both have to come through ONNX and GGUF."""
    imported = checkpoint_from_folder(work / "source", tmp_path / "start", mode="paper", frames=2)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"init: {imported.path}\noutput: {tmp_path / 'run'}\n"
        "data: {sources: [{kind: world, clips: 4}], budgets: [8, 32], "
        "questions_per_clip: 2, workers: 0}\n"
        "validation: [{kind: world, clips: 2, seed: 2}]\n"
        "optim: {steps: 2, clips_per_step: 2, warmup_steps: 1, learning_rate: 0.05}\n"
    )
    with unittest.mock.patch.dict(os.environ, {"VQEDGE_CACHE": str(tmp_path / "cache")}):
        trained = train(read_recipe(recipe), read_frames)
    assert trained is not None
    assert trained.config == imported.config
    adapter = load_tensors(trained.path / "lora.safetensors")
    assert any(value.abs().max() > 1e-3 for name, value in adapter.items() if "lora_B" in name)
    _, report = export_bundle(
        trained.path, tmp_path / "run.vqedge", open_llama_cpp, quant="F16", precision="fp32"
    )
    assert report.llm is not None and report.llm.top1_agreement > 0.99


def test_other_modes_name_the_tensors_that_they_leave_out(work: Path, tmp_path: Path) -> None:
    imported = checkpoint_from_folder(work / "source", tmp_path / "paper", mode="paper")
    assert imported.config.encoder.rule == DEFAULT_RULE, "it is trained here"
    assert "model.cross_attention.to_q_proj.weight" in imported.ignored
    assert "model.image_newline" in imported.ignored
    same = checkpoint_from_folder(work / "source", tmp_path / "again", mode="paper")
    for name in ("model.safetensors", "encoder.safetensors", "llm.gguf", "config.json"):
        assert (imported.path / name).read_bytes() == (same.path / name).read_bytes()
    shutil.rmtree(same.path)
