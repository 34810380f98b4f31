"""Runs that are refused: in one line, before any work, and nothing is lost."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_model import CONFIG
from tiny_run import BUDGETS, CLIPS, LESSONS, OTHER, STEPS, config_for, fill_cache, no_files, run

from vqedge.data.sources import source_from_config
from vqedge.errors import CheckpointError, ConfigError, FetchError, VqedgeError
from vqedge.model.checkpoint import (
    LORA,
    MODEL,
    POSITION,
    load_bridge,
    load_tensors,
    open_checkpoint,
)
from vqedge.model.encoder import Bridge
from vqedge.recipe import (
    DataConfig,
    JsonlConfig,
    OptimConfig,
    PhotosConfig,
    SourceConfig,
    TrainConfig,
    WorldConfig,
)
from vqedge.training.folder import LESSON, LOG, STATE, RunFolder

pytestmark = pytest.mark.usefixtures("train_cache")


def test_a_run_is_not_overwritten(whole: Path) -> None:
    before = (whole / STATE).read_bytes()
    with pytest.raises(CheckpointError, match="holds a run already; pass --resume"):
        run(config_for(whole))
    assert (whole / STATE).read_bytes() == before


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("model", {"model": OTHER}),
        ("seed", {"seed": 1}),
        (
            r"data\.sources",
            {"data": DataConfig(sources=(WorldConfig(seed=3, clips=3),), budgets=BUDGETS)},
        ),
        (
            r"init or optim\.naming_steps",
            {"optim": OptimConfig(steps=STEPS, clips_per_step=2, naming_steps=2)},
        ),
    ],
)
def test_another_run_does_not_go_on_from_it(whole: Path, key: str, changes: dict[str, Any]) -> None:
    step = r"another -o folder, or the recipe .* \(config\.json and metrics\.json say which\)"
    with pytest.raises(CheckpointError, match=f"is a run with another {key}; give {step}"):
        run(config_for(whole, **changes), resume=True)


def jsonl_pair(folder: Path) -> list[JsonlConfig]:
    """Two files of questions about the same videos."""
    lines = [json.dumps({"video": f"{n}.mp4", "question": "What?", "answer": "a"}) for n in "abc"]
    for name in "abc":
        (folder / f"{name}.mp4").write_bytes(b"")
    for name in ("mine", "other"):
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    return [JsonlConfig(kind="jsonl", path=folder / f"{n}.jsonl") for n in ("mine", "other")]


def photos_pair(folder: Path) -> list[PhotosConfig]:
    """Two splits of one index."""
    index, pair = folder / "index.jsonl", ("train", "other")
    lines = [{"file": f"{n}.jpg", "label": n, "text": n, "split": s} for n in "abcd" for s in pair]
    index.write_text("\n".join(map(json.dumps, lines)))
    for name in "abcd":
        (folder / f"{name}.jpg").write_bytes(b"")
    return [PhotosConfig(kind="photos", index=index, split=s, clips=CLIPS) for s in pair]


@pytest.mark.parametrize("pair", [jsonl_pair, photos_pair])
def test_a_run_on_other_files_does_not_go_on_from_it(
    tmp_path: Path, train_cache: Path, pair: Callable[[Path], list[SourceConfig]]
) -> None:
    mine, other = pair(tmp_path)
    for source in (mine, other):
        fill_cache(train_cache, CONFIG, 5, source_from_config(source, no_files))

    def config(source: SourceConfig) -> TrainConfig:
        data = DataConfig(sources=(source,), questions_per_clip=2, budgets=BUDGETS)
        return config_for(tmp_path / "run", steps=2, data=data)

    run(config(mine))
    run(config(mine), resume=True)
    with pytest.raises(CheckpointError, match=r"another data\.sources"):
        run(config(other), resume=True)


def test_a_run_from_another_checkpoint_of_the_same_name_does_not_go_on_from_it(
    tmp_path: Path, whole: Path
) -> None:
    inits = [Path(shutil.copytree(whole, tmp_path / n / "tiny")) for n in ("one", "copy", "other")]
    tensors = load_file(inits[2] / MODEL)
    info = safe_open(inits[2] / MODEL, framework="pt").metadata()
    save_file({**tensors, POSITION: tensors[POSITION] + 1}, inits[2] / MODEL, info)
    run(config_for(tmp_path / "on", steps=1, init=inits[0]))
    run(config_for(tmp_path / "on", init=inits[1]), resume=True)
    with pytest.raises(CheckpointError, match="another init"):
        run(config_for(tmp_path / "on", init=inits[2]), resume=True)


def test_a_lesson_is_not_overwritten(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run(config_for(tmp_path / "run"), minutes=0.0)
    with pytest.raises(CheckpointError, match="holds a run already"):
        run(config_for(tmp_path / "run"))


@pytest.mark.parametrize("resume", [False, True])
def test_two_runs_do_not_write_into_one_folder(tmp_path: Path, resume: bool) -> None:
    output = tmp_path / "busy"
    with RunFolder(config_for(output)).alone():
        before = list(output.iterdir())
        with pytest.raises(CheckpointError, match=r"busy: another vqedge train .* another -o"):
            run(config_for(output), resume)
        assert list(output.iterdir()) == before
    run(config_for(output, steps=1), resume)  # no run is there, the lock file is


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EIO])
def test_a_filesystem_without_locks_is_told_and_written_to(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, "refused")

    monkeypatch.setattr("vqedge.files.fcntl.flock", refuse)
    broken = pytest.raises(OSError, match="refused") if number == errno.EIO else nullcontext()
    with broken, RunFolder(config_for(tmp_path)).alone():
        assert f"{tmp_path}: no locks here" in caplog.text


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("gone", [(STATE,), (STATE, LOG)], ids=["its log stays", "no log"])
def test_a_checkpoint_without_its_run_is_not_overwritten(
    whole: Path, gone: tuple[str, ...], resume: bool
) -> None:
    for name in gone:
        (whole / name).unlink()
    before = (whole / MODEL).read_bytes()
    with pytest.raises(CheckpointError, match=rf"is a finished checkpoint.*no {STATE}.*init="):
        run(config_for(whole), resume=resume)
    assert (whole / MODEL).read_bytes() == before


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in ("file", "file/below"):
        with pytest.raises(CheckpointError, match=r"file: cannot be written to.*-o"):
            run(config_for(tmp_path / place))


@pytest.mark.parametrize(
    ("rate", "words"),
    [("learning_rate", "^step 2: .* lower optim"), ("naming_learning_rate", "^naming step 2: ")],
)
def test_weights_that_blow_up_end_the_run_and_are_not_saved(
    tmp_path: Path, rate: str, words: str
) -> None:
    wild = LESSONS.model_copy(update={"steps": 4, rate: 1e30})
    with pytest.raises(ConfigError, match=words):
        run(config_for(tmp_path, optim=wild, save_every=2))
    assert (tmp_path / STATE).exists() == (rate == "learning_rate")
    assert not (tmp_path / LESSON).exists()


class Encoded(Exception):
    """Clips would be encoded now."""


@pytest.mark.parametrize("fault", ["photos", "lines", "weights", "compiler", "init", "other run"])
def test_what_is_wrong_with_an_input_is_said_before_any_clip_is_encoded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, whole: Path, fault: str
) -> None:
    def encoding(*_: object) -> None:
        raise Encoded

    monkeypatch.setattr("vqedge.train.training_clips", encoding)
    with pytest.raises(Encoded):
        run(config_for(tmp_path / "good"))
    photos = PhotosConfig(kind="photos", index=tmp_path / "none.jsonl")
    questions = JsonlConfig(kind="jsonl", path=tmp_path / "none.jsonl")
    encoder = CONFIG.encoder.model_copy(update={"block": 3})
    changes: dict[str, Any] = {
        "photos": {"data": DataConfig(sources=(WorldConfig(), photos), budgets=BUDGETS)},
        "lines": {"validation": (questions,)},
        "compiler": {"optim": OptimConfig(compile=True)},
        "init": {"init": whole, "model": CONFIG.model_copy(update={"encoder": encoder})},
        "other run": {"seed": 1},
    }
    if fault == "weights":
        monkeypatch.setattr("vqedge.training.inputs.llm_weights", no_network)
    monkeypatch.setenv("CXX", "no-such-compiler")
    output = whole if fault == "other run" else tmp_path / "bad"
    with pytest.raises(VqedgeError, match=INPUTS_SAY[fault]):
        run(config_for(output, **changes.get(fault, {})), resume=True)


def test_a_video_that_is_trained_on_and_validated_with_is_told_before_any_clip_is_encoded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def encoding(*_: object) -> None:
        raise Encoded

    monkeypatch.setattr("vqedge.train.training_clips", encoding)
    monkeypatch.setattr("vqedge.train.refuse_unreadable", lambda *_: None)  # the files are empty
    ours, theirs = jsonl_pair(tmp_path)
    lines = theirs.path.read_text()
    data = DataConfig(sources=(WorldConfig(), ours), budgets=BUDGETS)
    (tmp_path / "link.mp4").symlink_to(tmp_path / "a.mp4")
    (tmp_path / "new.mp4").touch()
    for kept, told in (
        (lines, "3 of its 3 videos"),
        (lines.replace("a.mp4", "link.mp4").replace("b.mp4", "new.mp4"), "2 of its 3 videos"),
        (lines.splitlines()[0].replace("a.mp4", "new.mp4"), None),
    ):
        theirs.path.write_text(kept)
        with pytest.raises(Encoded):
            run(config_for(tmp_path / "run", data=data, validation=(WorldConfig(seed=2), theirs)))
        line = f"{theirs.path}: {told} are in {ours.path}, too, as a.mp4; validation will say"
        said = capsys.readouterr().err
        assert line in said if told else "validation will say" not in said


INPUTS_SAY = {
    "photos": r"none\.jsonl: cannot be read",
    "lines": r"none\.jsonl: cannot be read",
    "weights": "no network",
    "compiler": r"optim\.compile: ",
    "init": "its encoder differs",
    "other run": "another seed",
}


def no_network(*_: object) -> None:
    raise FetchError("no network")


@pytest.mark.parametrize(
    ("name", "words"),
    [(STATE, r"init=\S+whole with another -o"), (LESSON, "delete it, and --resume begins again")],
)
def test_a_save_that_a_crash_cut_off_is_named_with_what_is_left(
    whole: Path, name: str, words: str
) -> None:
    (whole / name).write_bytes((whole / STATE).read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=rf"{name}: damaged .*{words}"):
        run(config_for(whole), resume=True)


@pytest.mark.parametrize("name", [STATE, LESSON])
@pytest.mark.parametrize(
    "told",
    [
        None,
        {"format": "pt"},
        {"step": "", "lesson": "naming"},
        {"step": "1", "steps_before": "many", "lesson": "naming"},
    ],
)
def test_a_save_that_does_not_say_how_far_it_is(
    whole: Path, name: str, told: dict[str, str] | None
) -> None:
    save_file({}, whole / name, told)
    with pytest.raises(CheckpointError, match=f"{name}: damaged .*does not say how far"):
        run(config_for(whole), resume=True)


def test_weights_that_do_not_fit_are_refused(whole: Path, tmp_path: Path) -> None:
    tensors = load_tensors(whole / MODEL)
    del tensors["bridge.attention.scale"]
    with pytest.raises(CheckpointError, match=r"attention\.scale") as caught:
        load_bridge(Bridge(CONFIG), tensors)
    assert "\n" not in str(caught.value)
    (tmp_path / "broken").write_bytes(b"not a safetensors file")
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        load_tensors(tmp_path / "broken")
    (whole / LORA).unlink()
    with pytest.raises(CheckpointError, match=f"no {LORA}"):
        open_checkpoint(whole)


def test_a_configuration_of_another_version_is_refused(whole: Path) -> None:
    config = json.loads((whole / "config.json").read_text())
    config["quantizer"]["kind"] = "product"
    (whole / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"config\.json: .*kind"):
        open_checkpoint(whole)


def test_a_configuration_that_is_not_utf_8(whole: Path) -> None:
    (whole / "config.json").write_bytes(b'{"\xff": 1}')
    with pytest.raises(CheckpointError, match=r"config\.json: Invalid JSON"):
        open_checkpoint(whole)
