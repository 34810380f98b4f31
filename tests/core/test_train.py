"""A run killed and resumed is the run that was never killed; and what training refuses."""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
import torch._inductor.config
from accelerate.utils import DistributedType, str_to_bool
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from spread_run import OPTIM, spread_config
from test_baselines import write_checkpoint
from tiny_model import CODE_WIDTH, CONFIG, tiny_llm
from tiny_run import (
    BUDGETS,
    CLIPS,
    IN_WORDS,
    LEARNED,
    MODELS,
    STEPS,
    config_for,
    fill_cache,
    fill_features,
    kill_at,
    log_of,
    no_files,
    run,
    tiny_training,
)
from torch import Tensor
from torch._inductor.exc import InductorError
from typer.testing import CliRunner

from vqedge.checkpoint import steps_of
from vqedge.cli import app
from vqedge.config import ModelConfig, QuantizerConfig
from vqedge.data.sources import source_from_config
from vqedge.errors import CheckpointError, ConfigError, FetchError, UsageError, VqedgeError
from vqedge.files import file_sha256
from vqedge.model.checkpoint import (
    BRIDGE_PREFIX,
    LORA,
    METRICS,
    MODEL,
    POSITION,
    load_bridge,
    load_lora,
    load_reducer,
    load_tensors,
    open_checkpoint,
    start_from,
)
from vqedge.model.encoder import Bridge, quantizer_from_config, trained_bridge
from vqedge.model.llm import compile_blocks, decoder_of, hidden_states, with_lora
from vqedge.model.reducers.training import REDUCER_PREFIX, ReducerWithWeights
from vqedge.recipe import (
    DataConfig,
    JsonlConfig,
    OptimConfig,
    PhotosConfig,
    SourceConfig,
    TrainConfig,
    WorldConfig,
    read_recipe,
)
from vqedge.training import folder as folder_module
from vqedge.training.clips import training_clips
from vqedge.training.folder import LESSON, LOG, STATE, RunFolder
from vqedge.training.naming_lesson import NamingLesson
from vqedge.training.processes import (
    accelerator_for,
    share_of,
    spreads_llm,
    told_of,
    workers_of,
)
from vqedge.training.run import compiles
from vqedge.training.schedule import learning_rate_factor

ROOT = Path(__file__).parents[2]
OTHER = CONFIG.model_copy(
    update={"quantizer": CONFIG.quantizer.model_copy(update={"iterations": 3})}
)


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A tiny language model, no backbone, and a cache that holds random clips."""
    cache = tmp_path_factory.mktemp("cache")
    for config, seed in itertools.product((CONFIG, OTHER), (1, 2, 3)):
        fill_cache(cache, config, seed)
    for seed in (1, 2):
        fill_features(cache, CONFIG, seed)
    with tiny_training(cache):
        yield cache


compiling = pytest.mark.filterwarnings("ignore")
"""Of a test that compiles: PyTorch imports and touches what is deprecated, whatever ran before."""


@pytest.fixture(scope="module")
def _whole(_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("run") / "whole"
    run(config_for(output))
    return output


@pytest.fixture
def whole(_whole: Path, tmp_path: Path) -> Path:
    """A run that nothing interrupted, to do with as a test likes."""
    return Path(shutil.copytree(_whole, tmp_path / "whole"))


@pytest.mark.parametrize("fatal", [0, 1, 3])
def test_a_killed_run_goes_on_as_if_it_had_not_been(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, whole: Path, fatal: int
) -> None:
    killed = tmp_path / "killed"
    kill_at(monkeypatch, fatal)
    with pytest.raises(KeyboardInterrupt):
        run(config_for(killed))
    torch.manual_seed(99)  # a new process has another random state
    run(config_for(killed), resume=True)
    for name in (STATE, MODEL, LORA):
        expected, found = load_file(whole / name), load_file(killed / name)
        assert found.keys() == expected.keys()
        for tensor, value in expected.items():
            assert torch.equal(found[tensor], value), f"{name}: {tensor}"
    assert log_of(killed)[-1]["loss"] == log_of(whole)[-1]["loss"]
    assert [record["step"] for record in log_of(killed)] == [0, 1, 2, 3, 4]


def test_a_killed_run_with_dropout_leaves_out_what_it_would_have(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, whole: Path
) -> None:
    optim = config_for(whole).optim.model_copy(update={"hash_dropout": 0.5, "frame_dropout": 0.5})
    run(config_for(tmp_path / "dropping", optim=optim))
    kill_at(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        run(config_for(tmp_path / "killed", optim=optim))
    torch.manual_seed(99)  # a new process has another random state
    run(config_for(tmp_path / "killed", optim=optim), resume=True)
    plain, expected, found = (
        load_file(folder / STATE) for folder in (whole, tmp_path / "dropping", tmp_path / "killed")
    )
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    hashed = [name for name in plain if name.startswith("weight.") and "hash" in name]
    assert hashed and not any(torch.equal(expected[name], plain[name]) for name in hashed)


@pytest.mark.parametrize("place", ["save_file", "carry_weights"])
@pytest.mark.parametrize("first", [True, False])
def test_a_kill_within_a_save_loses_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, whole: Path, place: str, first: bool
) -> None:
    """Of the first save, or of the last one."""
    killed = tmp_path / "killed"
    part = getattr(folder_module, place)

    def dying(*words: Any) -> None:
        if first or ((killed / "step-000002").exists() and (killed / STATE).exists()):
            raise KeyboardInterrupt
        part(*words)

    monkeypatch.setattr(folder_module, place, dying)
    with pytest.raises(KeyboardInterrupt):
        run(config_for(killed))
    monkeypatch.undo()
    monkeypatch.setenv("VQEDGE_CACHE", os.environ["VQEDGE_CACHE"])
    run(config_for(killed), resume=True)
    for name in (STATE, MODEL, LORA):
        expected, found = load_file(whole / name), load_file(killed / name)
        assert all(torch.equal(found[tensor], value) for tensor, value in expected.items()), name
    assert [record["step"] for record in log_of(killed)] == [0, 1, 2, 3, 4]


def test_encoding_clips_first_changes_no_weight(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, whole: Path
) -> None:
    def drawing(*words: Any) -> Any:
        torch.rand(5)  # as loaders do that draw clips ahead
        return training_clips(*words)

    monkeypatch.setattr("vqedge.train.training_clips", drawing)
    run(config_for(tmp_path / "cold"))
    expected, found = load_file(whole / MODEL), load_file(tmp_path / "cold" / MODEL)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.slow
@compiling
def test_compiled_blocks_have_the_same_gradients() -> None:
    torch.manual_seed(2)
    rows, positions = torch.randn(2, 7, CONFIG.llm.width), torch.arange(7).expand(2, 7)
    allowed = torch.ones(7, 7, dtype=torch.bool).tril().expand(2, 7, 7)
    grads = []
    for prepare in (lambda _llm: None, compile_blocks):
        torch.manual_seed(4)
        llm = with_lora(tiny_llm(), CONFIG.llm)
        trained = {name: weight for name, weight in llm.named_parameters() if weight.requires_grad}
        for weight in trained.values():  # half of them start at zero
            torch.nn.init.normal_(weight, std=0.3)
        prepare(llm)
        hidden_states(llm, rows, allowed, positions).square().sum().backward()
        grads.append({name: weight.grad for name, weight in trained.items()})
    torch.testing.assert_close(grads[1], grads[0], atol=1e-4, rtol=1e-3)
    assert all(grad.abs().max() > 1e-3 for grad in grads[0].values())


class Waves(torch.nn.Module):
    """Something to compile."""

    def forward(self, rows: Tensor) -> Tensor:
        return rows.sin() + rows.cos()


@compiling
@torch.no_grad()
def test_a_compiler_that_does_not_work_is_done_without() -> None:
    """Unless compiling was asked for."""
    rows, block = torch.randn(2, 4), Waves()
    llm = SimpleNamespace(model=SimpleNamespace(layers=[block]))
    plain = block(rows)
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}):
        compile_blocks(llm, fall_back=True)
        assert torch.equal(block(rows), plain)
        torch.compiler.reset()
        compile_blocks(llm)
        with pytest.raises(InductorError, match=r"No working C\+\+ compiler"):
            block(rows)


@pytest.mark.parametrize("wanted", [None, True, False])
@pytest.mark.parametrize("steps", [99, 100])
@pytest.mark.parametrize("compiler", ["sh", "no-such-compiler"])
def test_blocks_are_compiled_where_it_is_worth_it_and_can_be(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    wanted: bool | None,
    steps: int,
    compiler: str,
) -> None:
    monkeypatch.setenv("CXX", compiler)
    config = config_for(tmp_path, optim=OptimConfig(steps=steps, compile=wanted))
    there = compiler == "sh"
    if wanted and not there:
        with pytest.raises(ConfigError, match=r"optim\.compile: .* finds no C\+\+ compiler"):
            compiles(config, torch.device("cpu"))
        return
    compiled = compiles(config, torch.device("cpu"))
    asked = steps == 100 if wanted is None else wanted
    assert compiled == (asked and there)
    assert ("twice as long" in caplog.text) == (asked and not there)


def test_a_log_line_cut_off_by_a_kill_is_dropped(whole: Path) -> None:
    with (whole / LOG).open("a", encoding="utf-8") as file:
        file.write('{"step": 5, "loss": 0.1}\n{"step": 6, "lo')
    run(config_for(whole), resume=True)
    assert [record["step"] for record in log_of(whole)] == [0, 1, 2, 3, 4]


def test_the_log_of_a_run_that_saved_nothing_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / LOG).write_text('{"lesson": "naming", "lesson_step": 9, "loss": 2}\n{"step": 1}\n')
    run(config_for(tmp_path, steps=1))
    assert [record.get("step") for record in log_of(tmp_path)] == [0, 1]


def test_bridge_and_adapter_learn_and_the_backbone_stays(tmp_path: Path, whole: Path) -> None:
    run(config_for(tmp_path / "short", steps=1))
    for name in (MODEL, LORA):
        one, four = load_file(tmp_path / "short" / name), load_file(whole / name)
        changed = {tensor for tensor in one if not torch.equal(one[tensor], four[tensor])}
        assert len(changed) > 0.9 * len(one)
    assert torch.equal(
        load_file(tmp_path / "short" / MODEL)[POSITION], load_file(whole / MODEL)[POSITION]
    )


def test_the_checkpoint_opens_and_holds_the_trained_weights(whole: Path) -> None:
    checkpoint = open_checkpoint(whole)
    assert checkpoint.config == CONFIG
    bridge, tensors = Bridge(CONFIG), load_tensors(whole / MODEL)
    load_bridge(bridge, tensors)
    trained = load_file(whole / STATE)
    for name, value in bridge.state_dict().items():
        assert torch.equal(value.half(), trained[f"weight.bridge.{name}"].half()), name
    assert tensors[POSITION].dtype == torch.float32
    metrics = json.loads((whole / METRICS).read_text())
    assert metrics["step"] == STEPS and "exact_match" in metrics["validation"]


def test_every_step_is_logged(whole: Path) -> None:
    log = log_of(whole)
    first, *log = log
    assert set(first) == {"step", "naming"}  # random codes show nothing that could be named
    assert [record["step"] for record in log] == [1, 2, 3, 4]
    assert {record["budget"] for record in log} <= {*BUDGETS}
    assert ["validation" in record for record in log] == [False, True, False, True]
    assert all(record["loss"] > 0 and record["gradient_norm"] > 0 for record in log)


def test_a_finished_run_may_be_resumed_and_lengthened(whole: Path) -> None:
    before = load_file(whole / MODEL)
    assert run(config_for(whole), resume=True).path == whole
    assert all(torch.equal(value, before[name]) for name, value in load_file(whole / MODEL).items())
    run(config_for(whole, steps=6), resume=True)
    assert [record["step"] for record in log_of(whole)] == [0, 1, 2, 3, 4, 5, 6]


def test_a_run_is_not_overwritten(whole: Path) -> None:
    before = (whole / STATE).read_bytes()
    with pytest.raises(CheckpointError, match="holds a run already; pass --resume"):
        run(config_for(whole))
    assert (whole / STATE).read_bytes() == before


@pytest.mark.parametrize(
    "changes",
    [
        {"model": OTHER},
        {"seed": 1},
        {"data": DataConfig(sources=(WorldConfig(seed=3, clips=3),), budgets=BUDGETS)},
        {"optim": OptimConfig(steps=STEPS, clips_per_step=2, naming_steps=2)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_another_run_does_not_go_on_from_it(whole: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="another model, other data"):
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
    tmp_path: Path, _cache: Path, pair: Callable[[Path], list[SourceConfig]]
) -> None:
    mine, other = pair(tmp_path)
    for source in (mine, other):
        fill_cache(_cache, CONFIG, 5, source_from_config(source, no_files))

    def config(source: SourceConfig) -> TrainConfig:
        data = DataConfig(sources=(source,), questions_per_clip=2, budgets=BUDGETS)
        return config_for(tmp_path / "run", steps=2, data=data)

    run(config(mine))
    run(config(mine), resume=True)
    with pytest.raises(CheckpointError, match="other data"):
        run(config(other), resume=True)


def test_a_run_from_another_checkpoint_of_the_same_name_does_not_go_on_from_it(
    tmp_path: Path, whole: Path
) -> None:
    inits = [Path(shutil.copytree(whole, tmp_path / n / "tiny")) for n in ("one", "copy", "other")]
    tensors = load_file(inits[2] / MODEL)
    save_file({**tensors, POSITION: tensors[POSITION] + 1}, inits[2] / MODEL)
    run(config_for(tmp_path / "on", steps=1, init=inits[0]))
    run(config_for(tmp_path / "on", init=inits[1]), resume=True)
    with pytest.raises(CheckpointError, match="another init"):
        run(config_for(tmp_path / "on", init=inits[2]), resume=True)


def test_a_run_goes_on_without_its_init_and_remembers_it(tmp_path: Path, whole: Path) -> None:
    init = Path(shutil.copytree(whole, tmp_path / "tiny"))
    run(config_for(tmp_path / "on", steps=1, init=init))
    (init / MODEL).unlink()
    run(config_for(tmp_path / "on", steps=2, init=init), resume=True)
    with safe_open(tmp_path / "on" / STATE, framework="pt") as file:
        assert file.metadata()["init"] == file_sha256(whole / MODEL)


def test_a_run_of_a_version_that_wrote_down_less_goes_on(whole: Path) -> None:
    with safe_open(whole / STATE, framework="pt") as file:
        info: dict[str, str] = file.metadata()
    assert info.pop("files") == "[null]"
    save_file(load_file(whole / STATE), whole / STATE, info)
    run(config_for(whole, steps=STEPS + 1), resume=True)
    assert [record["step"] for record in log_of(whole)] == [*range(STEPS + 2)]


def test_a_run_stops_when_its_time_is_up_and_goes_on(tmp_path: Path, whole: Path) -> None:
    stopped = tmp_path / "stopped"
    assert run(config_for(stopped), minutes=0.0) is None
    while run(config_for(stopped), resume=True, minutes=0.0) is None:
        pass
    assert [record["step"] for record in log_of(stopped)] == [0, 1, 2, 3, 4]
    expected, found = load_file(whole / STATE), load_file(stopped / STATE)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


LESSONS = OptimConfig(steps=1, clips_per_step=2, warmup_steps=2, naming_steps=3)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("resumed", ["stopped", "killed"])
def test_a_lesson_that_was_cut_short_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str, resumed: str
) -> None:
    """The first lesson, and of words the second."""

    def config(name: str) -> TrainConfig:
        return config_for(tmp_path / name, model=MODELS[kind], optim=LESSONS, save_every=1)

    run(config("whole"))
    if resumed == "stopped":
        calls = itertools.takewhile(
            lambda done: done is None,
            (run(config(resumed), resume=True, minutes=0.0) for _ in range(20)),
        )
        assert len(list(calls)) >= 3 * (1 + (kind == "words"))
    else:
        for fatal in (1, 4 if kind == "words" else 1):
            killed_lesson(monkeypatch, fatal)
            with pytest.raises(KeyboardInterrupt):
                run(config(resumed), resume=True)
            assert (tmp_path / resumed / LESSON).exists()
            torch.manual_seed(99)  # a new process has another random state
        run(config(resumed), resume=True)
    assert not (tmp_path / resumed / LESSON).exists()
    expected, found = (load_file(tmp_path / name / STATE) for name in ("whole", resumed))
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    lessons, again = (
        [record for record in log_of(tmp_path / name) if "step" not in record or not record["step"]]
        for name in ("whole", resumed)
    )
    assert lessons == again
    taught = ["naming"] * 3 * (kind == "words") + ["naming codes"] * 3
    assert [record.get("lesson") for record in lessons] == [*taught, None]
    assert [record["lesson_step"] for record in lessons[-4:-1]] == [1, 2, 3]


def killed_lesson(monkeypatch: pytest.MonkeyPatch, fatal: int) -> None:
    """The next run dies before this step of its lessons, counted through, once."""
    step, steps = NamingLesson._step, itertools.count()

    def dying(self: NamingLesson, number: int, *others: Any) -> float:
        if next(steps) == fatal:
            monkeypatch.setattr(NamingLesson, "_step", step)
            raise KeyboardInterrupt
        return step(self, number, *others)

    monkeypatch.setattr(NamingLesson, "_step", dying)


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


def test_what_a_killed_save_left_half_written_goes(whole: Path) -> None:
    left = [whole / ".vqedge-0123.tmp", whole / "step-000004/.vqedge-4567.tmp"]
    others = [whole / "notes.tmp", whole / "step-notes"]
    for path in (*left, *others):
        path.write_bytes(b"half")
    run(config_for(whole), resume=True)
    assert [path.exists() for path in (*left, *others)] == [False, False, True, True]


@pytest.mark.parametrize("resume", [False, True])
def test_a_checkpoint_without_its_run_is_not_overwritten(whole: Path, resume: bool) -> None:
    for name in (STATE, LOG):
        (whole / name).unlink()
    before = (whole / MODEL).read_bytes()
    with pytest.raises(CheckpointError, match=r"is a finished checkpoint.*init="):
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


INPUTS_SAY = {
    "photos": r"none\.jsonl: cannot be read",
    "lines": r"none\.jsonl: cannot be read",
    "weights": "no network",
    "compiler": r"optim\.compile: ",
    "init": "its encoder differs",
    "other run": "another model, other data",
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
@pytest.mark.parametrize("told", [None, {"format": "pt"}, {"step": "", "lesson": "naming"}])
def test_a_save_that_does_not_say_how_far_it_is(
    whole: Path, name: str, told: dict[str, str] | None
) -> None:
    save_file({}, whole / name, told)
    with pytest.raises(CheckpointError, match=f"{name}: damaged .*does not say how far"):
        run(config_for(whole), resume=True)


def test_gradients_accumulate_to_the_whole_step(tmp_path: Path) -> None:
    """Two parts of a clip each give the step of both, however long the answers of each are."""
    optim = OptimConfig(steps=1, clips_per_step=2, warmup_steps=1, naming_steps=0)
    parts = optim.model_copy(update={"accumulate": 2})
    run(config_for(tmp_path / "whole", optim=optim))
    run(config_for(tmp_path / "parts", optim=parts))
    one, two = (log_of(tmp_path / name)[-1] for name in ("whole", "parts"))
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
    assert two["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=1e-3)
    assert two["exact_match"] == one["exact_match"]


def test_a_codebook_is_fitted_trained_reported_and_resumed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run(config_for(tmp_path / "whole", model=LEARNED))
    tables = load_file(tmp_path / "whole" / MODEL)["bridge.codebook.tables"]
    assert tables.shape == (2, 6, CODE_WIDTH)
    usage = log_of(tmp_path / "whole")[-1]["codebook"]
    assert 0 < usage["usage"][0] <= 1 and 1 <= usage["perplexity"][0] <= 6
    kill_at(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        run(config_for(tmp_path / "killed", model=LEARNED))
    run(config_for(tmp_path / "killed", model=LEARNED), resume=True)
    expected, found = (load_file(tmp_path / name / STATE) for name in ("whole", "killed"))
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_codebook_may_start_from_a_checkpoint_without_one(tmp_path: Path, whole: Path) -> None:
    run(config_for(tmp_path / "on", steps=1, model=LEARNED, init=whole))
    assert open_checkpoint(tmp_path / "on").config == LEARNED


def test_a_narrow_codebook_takes_of_another_bridge_what_does_not_read_codes(
    tmp_path: Path, whole: Path
) -> None:
    quantizer = LEARNED.quantizer.model_copy(update={"codebook_width": 5})
    narrow = LEARNED.model_copy(update={"quantizer": quantizer})
    bridge, llm = trained_bridge(narrow), with_lora(tiny_llm(), narrow.llm)
    fresh = {name: value.clone() for name, value in bridge.state_dict().items()}
    assert not start_from(whole, narrow, bridge, llm)
    kept = load_file(whole / MODEL)
    for name, value in bridge.state_dict().items():
        new = name.startswith(("codebook.", "attention.code"))
        expected = fresh[name] if new else kept[f"{BRIDGE_PREFIX}{name}"].float()
        assert torch.equal(value, expected), name
    run(config_for(tmp_path / "on", steps=1, model=narrow, init=whole))
    assert "naming" in log_of(tmp_path / "on")[0]
    assert load_file(tmp_path / "on" / MODEL)["bridge.codebook.tables"].shape == (2, 6, 5)


def test_words_take_the_adapter_of_another_model_and_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, whole: Path
) -> None:
    run(config_for(tmp_path / "words", model=IN_WORDS, init=whole))
    first, *_, last = log_of(tmp_path / "words")
    assert "naming" in first and last["codebook"]["rows"]
    tensors = load_file(tmp_path / "words" / MODEL)
    assert tensors["bridge.codebook.tables"].shape == (2, 6, 7)
    bridge = trained_bridge(IN_WORDS)
    load_bridge(bridge, tensors)
    kept = bridge.table.clone()
    bridge.finish()
    torch.testing.assert_close(bridge.table, kept, atol=0.02, rtol=0.01)  # weights were rounded
    kill_at(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        run(config_for(tmp_path / "killed", model=IN_WORDS, init=whole))
    run(config_for(tmp_path / "killed", model=IN_WORDS, init=whole), resume=True)
    expected, found = (load_file(tmp_path / name / STATE) for name in ("words", "killed"))
    differing = [name for name, value in expected.items() if not torch.equal(found[name], value)]
    assert not differing


def test_words_may_be_told_apart_more_finely_than_where_they_start_from(tmp_path: Path) -> None:
    coarse = tmp_path / "coarse"
    run(config_for(coarse, steps=1, model=IN_WORDS))
    tensors = load_file(coarse / MODEL)
    tensors["bridge.table"] = tensors["bridge.table"][:-100].clone()  # of fewer words
    save_file(tensors, coarse / MODEL)
    bridge, llm = trained_bridge(IN_WORDS), with_lora(tiny_llm(), IN_WORDS.llm)
    assert start_from(coarse, IN_WORDS, bridge, llm)
    weights = {name: value for name, value in tensors.items() if name != "bridge.table"}
    found = bridge.state_dict()
    for name in (name for name in weights if name.startswith(BRIDGE_PREFIX)):
        assert torch.equal(found[name.removeprefix(BRIDGE_PREFIX)], weights[name].float()), name


GROUPED = CONFIG.model_copy(
    update={
        "quantizer": CONFIG.quantizer.model_copy(update={"kind": "reducer:group-queries"}),
    }
)


def test_a_reducer_with_weights_is_trained_kept_and_resumed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run(config_for(tmp_path / "grouped", model=GROUPED))
    first, *_, last = log_of(tmp_path / "grouped")
    assert "naming" in first and "exact_match" in last["validation"]
    run(config_for(tmp_path / "short", model=GROUPED, steps=1))
    weights, early = (
        {name: value for name, value in load_tensors(path / MODEL).items() if "reducer" in name}
        for path in (tmp_path / "grouped", tmp_path / "short")
    )
    assert len(weights) == 5 and all(name.startswith(REDUCER_PREFIX) for name in weights)
    assert not any(torch.equal(early[name], value) for name, value in weights.items())
    quantizer = quantizer_from_config(GROUPED)
    load_reducer(quantizer, weights)
    kept = weights[f"{REDUCER_PREFIX}queries"].float()
    assert torch.equal(quantizer.get_parameter("reducer.queries"), kept)
    kill_at(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        run(config_for(tmp_path / "killed", model=GROUPED))
    torch.manual_seed(99)  # the choice among groups is drawn
    run(config_for(tmp_path / "killed", model=GROUPED), resume=True)
    expected, found = (load_file(tmp_path / name / STATE) for name in ("grouped", "killed"))
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_reducer_may_start_from_a_checkpoint_with_or_without_it(
    tmp_path: Path, whole: Path
) -> None:
    run(config_for(tmp_path / "grouped", steps=1, model=GROUPED, init=whole))
    name = f"{REDUCER_PREFIX}queries"
    llm, reducer = with_lora(tiny_llm(), GROUPED.llm), ReducerWithWeights(GROUPED)
    assert start_from(tmp_path / "grouped", GROUPED, trained_bridge(GROUPED), llm, reducer)
    kept = load_tensors(tmp_path / "grouped" / MODEL)[name].float()
    assert torch.equal(reducer.quantizer.get_parameter("reducer.queries"), kept)


def test_steps_count_from_what_a_run_started_from(tmp_path: Path, whole: Path) -> None:
    run(config_for(tmp_path / "on", steps=1, init=whole))
    run(config_for(tmp_path / "further", steps=2, init=tmp_path / "on"))
    assert [steps_of(folder) for folder in (whole, tmp_path / "on", tmp_path / "further")] == [
        STEPS,
        STEPS + 1,
        STEPS + 3,
    ]


def test_a_run_may_start_from_a_checkpoint(tmp_path: Path, whole: Path) -> None:
    slow = OptimConfig(steps=1, learning_rate=1e-12, bridge_learning_rate=1e-12, naming_steps=1)
    run(
        config_for(tmp_path / "on", optim=slow.model_copy(update={"clips_per_step": 2}), init=whole)
    )
    for name in (MODEL, LORA):
        old, new = load_file(whole / name), load_file(tmp_path / "on" / name)
        assert all(torch.equal(new[tensor], value) for tensor, value in old.items()), name
    with pytest.raises(CheckpointError, match="cannot start from it, its encoder differs"):
        other = CONFIG.model_copy(
            update={"encoder": CONFIG.encoder.model_copy(update={"block": 3})}
        )
        start_from(whole, other, Bridge(other), None)


def launched(words: Sequence[object], cache: Path, **environment: str) -> None:
    """Run a launcher of Python's, its processes on one thread each."""
    environment |= {"OMP_NUM_THREADS": "1", "VQEDGE_CACHE": str(cache)}
    command = [sys.executable, *map(str, words)]
    subprocess.run(command, env={**os.environ, **environment}, check=True, timeout=300)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["codes", "words"])
def test_two_processes_train_together(tmp_path: Path, _cache: Path, kind: str) -> None:
    """Each takes half of a step's clips; one of them writes."""
    run(config_for(tmp_path / "alone", model=MODELS[kind]))
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = Path(__file__).with_name("tiny_run.py")
    launched([*launch, script, tmp_path / "both", kind], _cache, ACCELERATE_USE_CPU="true")
    alone, both = log_of(tmp_path / "alone"), log_of(tmp_path / "both")
    assert [record["step"] for record in both] == [0, 1, 2, 3, 4]
    for one, two in zip(alone[1:], both[1:], strict=True):
        near = 1e-3 if kind == "codes" else 0.3  # the codebook learns from a process's own codes
        assert two["loss"] == pytest.approx(one["loss"], rel=near)
        assert two["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=near)
    expected = load_file(tmp_path / "alone" / LORA)
    found = load_file(tmp_path / "both" / LORA)
    drift = [float((found[name] - value).abs().max()) for name, value in expected.items()]
    assert max(drift) < 5e-3  # Adam takes steps of rounding where a gradient is next to nothing


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "precision"), [("codes", "fp32"), ("words", "bf16")])
def test_two_processes_spread_the_language_model(
    tmp_path: Path, _cache: Path, kind: str, precision: Literal["fp32", "bf16"]
) -> None:
    """They train as two do that hold all of it, go on after a kill, and one goes on alone."""
    launch = ["-m", "accelerate.commands.launch", "--use_fsdp", "--fsdp_version", "2"]
    launch += ["--num_processes", "2", "--num_machines", "1", "--main_process_port", "0"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    script = Path(__file__).with_name("spread_run.py")
    launched([*launch, script, tmp_path, kind, precision], _cache, CUDA_VISIBLE_DEVICES="")
    llm = with_lora(tiny_llm(), CONFIG.llm)
    matrices = [p for p in decoder_of(llm).layers.parameters() if p.ndim == 2]
    frozen = sum(p.numel() for p in matrices if not p.requires_grad)
    every = sum(p.numel() for p in llm.parameters())
    share = every - frozen // 2
    held: list[int] = json.loads((tmp_path / "held.json").read_text())
    assert held == [every, share, share, share]
    for name in (STATE, MODEL, LORA):
        whole, spread, killed = (
            load_file(tmp_path / folder / name) for folder in ("whole", "spread", "killed")
        )
        assert whole.keys() == spread.keys() == killed.keys()
        assert all(torch.equal(killed[tensor], value) for tensor, value in spread.items()), name
        drift = [float((whole[tensor] - value).abs().max()) for tensor, value in spread.items()]
        assert max(drift) < 1e-4, name
    load_lora(llm, load_tensors(tmp_path / "spread" / LORA))
    alone = spread_config(tmp_path / "spread", kind, "fp32")
    longer = OPTIM.model_copy(update={"steps": STEPS + 1})
    run(alone.model_copy(update={"optim": longer}), resume=True)
    assert [record["step"] for record in log_of(tmp_path / "spread")] == [*range(STEPS + 2)]


def process(
    number: int,
    count: int,
    kind: DistributedType = DistributedType.MULTI_CPU,
    device: str = "cpu",
) -> Any:
    return SimpleNamespace(
        process_index=number,
        num_processes=count,
        distributed_type=kind,
        device=torch.device(device),
    )


def test_processes_that_find_different_things_done_leave_nothing_out() -> None:
    early, late = share_of([0, 1, 2, 3, 4], process(0, 2)), share_of([1, 3, 4], process(1, 2))
    assert {*early, *late} == {0, 1, 2, 3, 4} and not {*early} & {*late}


@pytest.mark.parametrize(
    ("cores", "processes", "workers"), [(1, 1, 0), (2, 1, 1), (16, 1, 12), (16, 4, 3), (2, 4, 0)]
)
def test_as_many_processes_draw_clips_as_there_are_cores_to_spare(
    monkeypatch: pytest.MonkeyPatch, recipe: Path, cores: int, processes: int, workers: int
) -> None:
    monkeypatch.setattr("vqedge.training.processes.usable_cores", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    wanted = read_recipe(recipe).data.workers
    assert workers_of(wanted) == workers
    assert workers_of(wanted, decode=True) == max(cores // processes - 1, 0)
    assert workers_of(5) == workers_of(5, decode=True) == 5


@pytest.mark.parametrize(
    ("there", "optim", "words"),
    [
        (process(0, 3), {"clips_per_step": 8}, "want a multiple of 3"),
        (process(0, 8), {"clips_per_step": 16, "accumulate": 4}, "want a multiple of 32"),
        (process(0, 2, DistributedType.FSDP), {}, "FSDP: what is trained is small"),
    ],
)
def test_processes_that_cannot_share_a_step_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: Any, optim: Any, words: str
) -> None:
    monkeypatch.setattr("vqedge.training.processes.Accelerator", lambda **_: there)
    with pytest.raises(ConfigError, match=words):
        run(config_for(tmp_path, optim=OptimConfig(**optim)))


def test_processes_that_did_not_meet_do_not_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vqedge.training.processes.Accelerator", lambda **_: process(0, 1))
    monkeypatch.setenv("WORLD_SIZE", "2")
    accelerator_for(config_for(tmp_path))  # of a shell: no launcher started this process
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(ConfigError, match=r"started 2 processes, .* ACCELERATE_USE_CPU=true"):
        run(config_for(tmp_path))


def test_fsdp_of_one_process_is_told_that_it_does_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("vqedge.training.processes.Accelerator", lambda **_: process(0, 1))
    accelerator_for(config_for(tmp_path))
    assert not caplog.messages
    for name, value in (("ACCELERATE_USE_FSDP", "true"), ("FSDP_VERSION", "2")):
        monkeypatch.setenv(name, value)
    accelerator_for(config_for(tmp_path))
    assert "keeps the whole language model" in caplog.text


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"FSDP_VERSION": "1"}, "launch with --use_fsdp --fsdp_version 2"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, "--fsdp_offload_params is not supported"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "--fsdp_activation_checkpointing is not"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "--use_parallelism_config is not"),
    ],
)
def test_what_is_not_done_of_fsdp_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], words: str
) -> None:
    asked = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    for name, value in (asked | settings).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=words):
        run(config_for(tmp_path))


def test_under_fsdp_every_process_loads_the_language_model_and_one_alone_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str | None] = []
    there = process(0, 2)

    def accelerator(**_: object) -> Any:
        asked.append(os.environ.get("ACCELERATE_USE_FSDP"))
        return there

    monkeypatch.setattr("vqedge.training.processes.Accelerator", accelerator)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")  # so the launcher says
    assert spreads_llm(accelerator_for(config_for(tmp_path))) and not spreads_llm(process(0, 1))
    assert asked == ["false"], "Accelerate would spread what is trained"
    assert not str_to_bool(os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"])


def test_processes_wait_for_those_that_encode_more(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told: dict[str, Any] = {}
    monkeypatch.setattr(
        "vqedge.training.processes.Accelerator", lambda **more: told.update(more) or process(0, 1)
    )
    accelerator_for(config_for(tmp_path))
    (handler,) = told["kwargs_handlers"]
    assert handler.to_kwargs()["timeout"] >= timedelta(hours=12)


@pytest.mark.parametrize(
    ("count", "gpus", "words"),
    [
        (1, 1, "training on NVIDIA X, bf16, blocks compiled"),
        (1, 8, r"on NVIDIA X \(1 of 8 GPUs; accelerate launch --multi_gpu .*\), bf16"),
        (8, 8, "training in 8 processes on NVIDIA X, bf16"),
    ],
)
def test_what_trains_where_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, count: int, gpus: int, words: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "NVIDIA X")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    config = config_for(tmp_path, precision="bf16")
    assert re.search(words, told_of(config, process(0, count, device="cuda"), True))


@pytest.mark.parametrize(("cuda", "gpu"), [(None, True), (None, False), ("13.0", True)])
def test_a_gpu_that_pytorch_does_not_know_is_told(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    cuda: str | None,
    gpu: bool,
) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr("vqedge.training.processes._NVIDIA", tmp_path / ("" if gpu else "none"))
    told = told_of(config_for(tmp_path), process(0, 1), False)
    assert told.startswith(f"training on the CPU ({torch.get_num_threads()} threads), fp32")
    assert ("--force-reinstall torch" in told) == (gpu and cuda is None)


def test_a_gpu_is_asked_to_repeat_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[object] = []
    monkeypatch.setattr(
        torch, "use_deterministic_algorithms", lambda *words, **more: asked.append((words, more))
    )
    exact: list[bool] = []
    monkeypatch.setattr("vqedge.training.processes.exact_float32", lambda: exact.append(True))
    there = process(0, 1, device="cuda")
    monkeypatch.setattr("vqedge.training.processes.Accelerator", lambda **_: there)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    accelerator_for(config_for(tmp_path))
    assert asked == [((True,), {"warn_only": True})] and exact == [True]
    assert not torch.utils.deterministic.fill_uninitialized_memory
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_old_checkpoints_are_pruned_and_curves_drawn(tmp_path: Path) -> None:
    output = tmp_path / "kept"
    run(config_for(output, steps=6, keep=2))
    assert sorted(path.name for path in output.glob("step-*")) == ["step-000004", "step-000006"]
    assert open_checkpoint(output / "step-000004").config == CONFIG
    assert (output / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_numbered_folders_that_are_not_this_runs_stay(tmp_path: Path) -> None:
    """Nor do they count as those that are kept."""
    foreign = ("step-000001-good", "step-000900", "step-1000000", "step-3", "step-notes")
    for name in foreign:
        (tmp_path / name).mkdir()
    (tmp_path / "step-3.png").touch()
    (tmp_path / "step-000001").symlink_to(tmp_path / "step-notes")
    run(config_for(tmp_path, steps=6, keep=2))
    there = {path.name for path in tmp_path.glob("step-*")}
    assert there == {*foreign, "step-3.png", "step-000001", "step-000004", "step-000006"}


def test_numbered_folders_are_dropped_by_number(tmp_path: Path) -> None:
    folder = RunFolder(config_for(tmp_path, keep=1))
    for name in ("step-999950", "step-1000000"):
        (tmp_path / name).mkdir()
    folder._prune(1_000_000)
    assert [path.name for path in tmp_path.iterdir()] == ["step-1000000"]


def test_the_learning_rate_warms_up_and_falls() -> None:
    factors = [learning_rate_factor(step, 10, 100) for step in range(100)]
    assert factors[:10] == pytest.approx([step / 10 for step in range(1, 11)])
    assert factors[10] == 1.0 and factors[99] == pytest.approx(0.05, abs=1e-3)
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[55] == pytest.approx(0.525)


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


def test_metrics_of_no_step_are_of_unknown_steps(whole: Path) -> None:
    for text in ("{", "[]", "{}", '{"step": null}', '{"step": 1e999}', '{"step": NaN}'):
        (whole / METRICS).write_text(text)
        assert steps_of(whole) is None, text


# ---- the configuration


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text("optim: {steps: 7}\ndata: {questions_per_clip: 9}\n")
    return path


def test_a_recipe_with_overrides(recipe: Path) -> None:
    config = read_recipe(recipe, ["optim.steps=3", "output=runs/x", "model.llm.width=8"])
    assert (config.optim.steps, config.data.questions_per_clip, config.output) == (
        3,
        9,
        Path("runs/x"),
    )
    assert config.model.llm.width == 8


@pytest.mark.parametrize("name", ["2026-11-29", "7", "runs/x: y"])
def test_a_folder_is_its_name_whatever_it_would_be_in_yaml(recipe: Path, name: str) -> None:
    assert read_recipe(recipe, output=Path(name)).output == Path(name)


def test_an_override_reaches_into_a_list(recipe: Path) -> None:
    sources = "data.sources=[{kind: world, seed: 1}, {kind: world, seed: 3}]"
    config = read_recipe(recipe, [sources, "data.sources.1.clips=5"])
    assert [entry.model_dump()["clips"] for entry in config.data.sources] == [4000, 5]


def test_every_recipe_of_the_repository_is_valid() -> None:
    recipes = sorted((ROOT / "recipes").glob("*.yaml"))
    assert recipes
    for path in recipes:
        assert read_recipe(path).model.quantizer.codes > 0


FAULTS = {
    "'optim.stepz=3': no such key; did you mean steps?": ["optim.stepz=3"],
    "'optm.steps=3': optm: no such key; did you mean optim?": ["seed=1", "optm.steps=3"],
    "'extra=1': no such key; --print-config shows all": ["extra=1"],
    "'optim.steps=0': Input should be greater than 0": ["optim.steps=9", "optim.steps=0"],
    "'data.sources.0.clips=0': Input should be greater than 0": [
        "data.sources=[{kind: world}]",
        "data.sources.0.clips=0",
    ],
    "world 2 is held out": ["data.sources=[{kind: world, seed: 2}]"],
    "world 70001 is held out": ["data.sources=[{kind: world, seed: 70001}]"],
    "world 70003 is held out": ["data.sources=[{kind: world, seed: 70003}]"],
    "photos test is held out": ["data.sources=[{kind: photos, index: i.jsonl, split: test}]"],
    "'validation=[]': Tuple should have at least 1 item": ["validation=[]"],
    "heads 5 do not divide width 384": ["model.attention.heads=5"],
    "'seed=-1': Input should be greater than or equal to 0": ["seed=-1"],
    "'optim.steps=many': Input should be a valid integer": ["optim.steps=many"],
    "'optim.steps.more=1': optim.steps: Input should be": ["optim={}", "optim.steps.more=1"],
    "'optim.learning_rate=.inf': Input should be a finite": ["optim.learning_rate=.inf"],
    "'data.sources=[{kind: world, weight: .inf}]': data.sources.0.weight: Input should be a": [
        "data.sources=[{kind: world, weight: .inf}]"
    ],
    "an override reads key.sub=value": ["optim.steps"],
    "'output=2026-02-30': day ": ["output=2026-02-30"],
    "'seed=[': while parsing": ["seed=["],
    "'precision=int4': Input should be 'fp32' or 'bf16'": ["precision=int4"],
    "'questions_per_clip' is a value": ["data.questions_per_clip.more=1"],
    "'2' is not one of 1, counted from 0": [
        "data.sources=[{kind: world}]",
        "data.sources.2.clips=1",
    ],
    "'clips' is not one of 1": ["data.sources=[{kind: world}]", "data.sources.clips=1"],
    "want model.quantizer.default_budget among them": ["data.budgets=[8]"],
    "none may exceed model.quantizer.codes": ["data.budgets=[8, 200]"],
    "must divide optim.clips_per_step": ["optim.accumulate=3"],
    "want attention.hash occupancy or places": [
        "optim.hash_dropout=0.2",
        "model.attention.hash=none",
    ],
    "does not match any of the expected tags": ["data.sources=[{kind: radio}]"],
}


@pytest.mark.parametrize("problem", FAULTS)
def test_a_bad_override_is_named(recipe: Path, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_recipe(recipe, FAULTS[problem])
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("override", ["init=5", "init.x=1", 'init=["a"]'])
def test_an_init_that_is_no_path(recipe: Path, override: str) -> None:
    with pytest.raises(UsageError, match="Input is not a valid path") as caught:
        read_recipe(recipe, [override])
    assert str(caught.value).startswith(f"{override!r}: ")


START = ModelConfig(quantizer=QuantizerConfig(kind="grid", codes=128))


@pytest.mark.parametrize("told_by", ["the file", "an override"])
def test_overrides_change_the_model_that_init_gives(tmp_path: Path, told_by: str) -> None:
    path, init = tmp_path / "run.yaml", f"init{{}}{write_checkpoint(tmp_path / 'start', START)}"
    path.write_text(init.format(": ") if told_by == "the file" else "seed: 1\n")
    last = [init.format("=")] if told_by == "an override" else []
    assert read_recipe(path, last).model == START
    model = read_recipe(path, ["model.quantizer.default_budget=16", *last]).model
    changed = START.quantizer.model_copy(update={"default_budget": 16})
    assert model == START.model_copy(update={"quantizer": changed})


def test_a_model_of_the_file_is_not_that_of_init(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "start", START)
    path = tmp_path / "run.yaml"
    path.write_text("model: {quantizer: {default_budget: 8}}\n")
    model = read_recipe(path, [f"init={tmp_path / 'start'}"]).model
    assert model == ModelConfig(quantizer=QuantizerConfig(default_budget=8))


def test_budgets_that_no_step_draws_are_no_fault(recipe: Path) -> None:
    asked = ["model.quantizer.kind=reducer:query-window", "data.budgets=[8, 200]"]
    config = read_recipe(recipe, asked)
    assert config.budgets == (config.model.quantizer.default_budget,)


@pytest.mark.parametrize(
    "text", ["optim: {steps: [", "- just\n- a list\n", "just words", "\xff", "output: 2026-02-30"]
)
def test_a_file_that_is_no_recipe(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"bad\.yaml: ") as caught:
        read_recipe(path, ["seed=1"])
    assert "\n" not in str(caught.value)


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such file; see recipes/world\.yaml"):
        read_recipe(tmp_path / "none.yaml")
    with pytest.raises(ConfigError) as caught:
        read_recipe(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}: Is a directory; give a file as recipes/")


def test_the_command_says_what_is_wrong(recipe: Path) -> None:
    outcome = CliRunner().invoke(app, ["train", str(recipe), "optim.stepz=3"])
    assert isinstance(outcome.exception, UsageError)
    assert str(outcome.exception) == "'optim.stepz=3': no such key; did you mean steps?"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("optim: {stepz: 3}", "optim.stepz: no such key; did you mean steps?"),
        ("optim: {steps: 0}", "optim.steps: Input should be greater than 0"),
        ("model: {attention: {heads: 5}}", "model.attention: heads 5 do not divide width 384"),
    ],
)
def test_a_fault_of_the_file_is_that_of_no_override(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_recipe(path, ["seed=1", "optim.accumulate=1", "model.attention.hash=none"])
    assert not isinstance(caught.value, UsageError)
    assert str(caught.value) == f"{path}: {words}"
