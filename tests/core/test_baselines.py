"""`vqedge eval --baselines`: what a checkpoint is compared with, under which name."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny_bundle import write_bundle

import vqedge.commands.baselines as baselines
import vqedge.commands.evaluate as evaluating
from vqedge.checkpoint import CONFIG, LORA, METRICS, MODEL, checkpoint_sha256, steps_of
from vqedge.commands.baselines import (
    COMPARISONS,
    Comparison,
    baselines_of,
    difference,
    trained_baselines,
)
from vqedge.commands.evaluate import BundleAnswerer, EvalOptions
from vqedge.commands.measured import model_of_bundle, versions
from vqedge.commands.session import RunsOn
from vqedge.config import AttentionConfig, ModelConfig, QuantizerConfig
from vqedge.data.suites import Item, suite_items
from vqedge.errors import CheckpointError, ConfigError, VideoError
from vqedge.evaluate import Answerer, Reply
from vqedge.recipe import TrainConfig, read_recipe
from vqedge_runtime import TokenSet, VideoQA
from vqedge_runtime.bridge.fake import FakeBridge
from vqedge_runtime.encoders.fake import FakeEncoder
from vqedge_runtime.llm import FakeLanguageModel

OURS = ModelConfig()
RANDOM = OURS.model_copy(update={"quantizer": QuantizerConfig(kind="reducer:random-prune")})
TWO_CHANGES = OURS.model_copy(
    update={"quantizer": QuantizerConfig(codes=128), "attention": AttentionConfig(hash="none")}
)


def write_checkpoint(folder: Path, config: ModelConfig = OURS, steps: object = 300) -> Path:
    """All files of a checkpoint; its weights are never looked at here."""
    folder.mkdir(parents=True)
    (folder / CONFIG).write_text(config.model_dump_json())
    (folder / METRICS).write_text(json.dumps({"step": steps}))
    for name in (MODEL, LORA):
        (folder / name).touch()
    return folder


# ---- names


def test_a_name_says_how_a_configuration_differs() -> None:
    assert difference(RANDOM, OURS) == "random codes"
    assert difference(OURS, RANDOM) == "quantizer.kind=kmeans"
    assert difference(TWO_CHANGES, OURS) == "quantizer.codes=128, attention.hash=none"
    assert difference(OURS, OURS) == ""
    blocks = OURS.model_copy(
        update={"encoder": OURS.encoder.model_copy(update={"trained_blocks": 2})}
    )
    assert difference(blocks, OURS) == "encoder.trained_blocks=2"
    assert difference(OURS, blocks) == "encoder.trained_blocks=0"


@pytest.mark.parametrize("comparison", COMPARISONS, ids=lambda comparison: comparison.folder)
def test_the_command_that_is_printed_trains_what_is_missing(
    comparison: Comparison, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: {attention: {depth: 3}}\n")
    words = shlex.split(comparison.command(Path("runs/baselines")))
    assert words[:3] == ["vqedge", "train", "ITS_RECIPE"]
    assert words[-2:] == ["-o", f"runs/baselines/{comparison.folder}"]
    config: TrainConfig = read_recipe(recipe, words[3:-2])
    assert difference(config.model, read_recipe(recipe).model) == comparison.name
    assert (config.optim.naming_steps == 0) == config.model.attention.blind, "nothing to name"
    half = config.optim.naming_share == read_recipe(recipe).optim.naming_share
    assert half == (config.model.quantizer.kind != "reducer:uniform-pool"), (
        "no cell is half of a thing"
    )


def test_comparisons_have_names_and_folders_of_their_own() -> None:
    assert len({comparison.name for comparison in COMPARISONS}) == len(COMPARISONS)
    assert len({comparison.folder for comparison in COMPARISONS}) == len(COMPARISONS)


# ---- which are there


def test_trained_comparisons_are_found_by_their_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = write_checkpoint(tmp_path / "ours")
    folder = tmp_path / "runs"
    write_checkpoint(folder / "any name", RANDOM, 120)
    write_checkpoint(folder / "more", RANDOM)
    write_checkpoint(folder / "other", TWO_CHANGES)
    write_checkpoint(folder / "other data")
    (folder / "no checkpoint").mkdir()
    found = trained_baselines(ours, folder, None)
    assert [(subject.name, subject.steps) for subject in found] == [
        ("random codes", 120),
        ("random codes (more)", 300),
        ("quantizer.codes=128, attention.hash=none", 300),
        ("other data", 300),
    ]
    lines = capsys.readouterr().err.splitlines()
    missing = [comparison for comparison in COMPARISONS if comparison.name != "random codes"]
    assert lines[0] == f"{folder / 'any name'}: trained for 120 steps, {ours} for 300"
    assert lines[1:] == [
        f"no trained baseline {comparison.name!r}: {comparison.command(folder)}"
        for comparison in missing
    ]


def test_a_folder_that_is_not_there_is_all_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = write_checkpoint(tmp_path / "ours")
    assert trained_baselines(ours, tmp_path / "none", None) == []
    assert len(capsys.readouterr().err.splitlines()) == len(COMPARISONS)


def test_an_incomplete_checkpoint_or_one_without_the_budget_is_an_error(tmp_path: Path) -> None:
    ours = write_checkpoint(tmp_path / "ours")
    write_checkpoint(tmp_path / "runs" / "random", RANDOM)
    with pytest.raises(ConfigError, match=r"budget auto: .*/runs/random has a fixed budget"):
        trained_baselines(ours, tmp_path / "runs", "auto")
    with pytest.raises(ConfigError, match=r"budget 65: .*/runs/random takes 1 to 64 tokens"):
        trained_baselines(ours, tmp_path / "runs", 65)
    (tmp_path / "runs" / "random" / LORA).unlink()
    with pytest.raises(CheckpointError, match=f"random: no {LORA}"):
        trained_baselines(ours, tmp_path / "runs", None)


@pytest.mark.parametrize("flags", [RunsOn("openvino"), RunsOn(threads=1), RunsOn(gpu_layers=0)])
def test_a_checkpoint_runs_in_pytorch_whatever_is_asked(tmp_path: Path, flags: RunsOn) -> None:
    with pytest.raises(ConfigError, match="leave out --backend, --threads and --gpu-layers"):
        EvalOptions(checkpoint=tmp_path, runs_on=flags)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"step": "many"}', '{"step": null}'])
def test_steps_that_nobody_wrote_down(tmp_path: Path, text: str) -> None:
    (tmp_path / METRICS).write_text(text)
    assert steps_of(tmp_path) is None
    assert steps_of(tmp_path / "none") is None


# ---- the report


class Stub:
    """Right about the given share of questions, in a row."""

    backend = {"encoder": "stub", "llm": "stub"}  # noqa: RUF012 - a constant of a stand-in
    tokens_before, frames = 2048, 8

    def __init__(self, share: float, less: dict[str, float] | None = None) -> None:
        self.share, self.asked = share, 0
        self.less = less or {}

    def replies(self, items: Sequence[Item]) -> Iterator[Reply]:
        for item in items:
            self.asked += 1
            yield Reply(item.answer if self.asked % 10 < 10 * self.share else "?", 16)

    def perturbed(self) -> dict[str, Answerer]:
        return {name: Stub(share) for name, share in self.less.items()}


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """Checkpoints are stand-ins; the list fills with those that were opened and their budgets."""
    log: list[tuple[str, Any]] = []

    def fake(path: Path, budget: Any, _: Any = None) -> Stub:
        log.append((path.name, budget))
        if path.name == "ours":
            return Stub(0.9, {"shuffled frames": 0.5, "blind": 0.2})
        return Stub(0.6)

    monkeypatch.setattr(baselines, "opened_checkpoint", fake)
    monkeypatch.setattr(evaluating, "opened_checkpoint", fake)
    monkeypatch.setattr("vqedge.progress._LINES_APART_S", 0.0)
    return log


@pytest.fixture
def run(
    tmp_path: Path, opened: list[tuple[str, Any]], capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[str, str]]:
    """Evaluate a checkpoint with one trained comparison; gives stdout and stderr."""
    ours = write_checkpoint(tmp_path / "ours")
    write_checkpoint(tmp_path / "runs" / "random", RANDOM, 120)

    def run(**options: Any) -> tuple[str, str]:
        as_json = options.pop("as_json", False)
        suite = options.pop("suite", "synthetic")
        wanted = EvalOptions(checkpoint=ours, limit=40, **options)
        evaluating.run_eval(suite, options=wanted, as_json=as_json)
        return capsys.readouterr()

    return run


def test_the_report_holds_a_row_for_each(
    run: Callable[..., tuple[str, str]], tmp_path: Path, opened: list[tuple[str, Any]]
) -> None:
    out, err = run(baselines=True, baselines_dir=tmp_path / "runs", budget=16, as_json=True)
    document = json.loads(out.splitlines()[-1])
    rows = document["baselines"]
    assert list(rows) == ["shuffled frames", "blind", "random codes"]
    found = [document["accuracy"], *(row["accuracy"] for row in rows.values())]
    assert found == pytest.approx([0.9, 0.5, 0.2, 0.6])
    assert [document["steps"], rows["random codes"]["steps"]] == [300, 120]
    assert "steps" not in rows["blind"], "nothing was trained for it"
    for row in rows.values():
        assert row["n"] == document["n"] == 40
        assert set(row["by_kind"]) == set(document["by_kind"])
        assert row["interval"][0] < row["accuracy"] < row["interval"][1]
    assert opened == [("ours", 16), ("random", 16)]
    assert [name for name in rows if f"{name}: " in err] == list(rows), "each told how far it was"


def test_the_table_has_a_line_and_a_column_for_each(
    run: Callable[..., tuple[str, str]], tmp_path: Path
) -> None:
    out, _ = run(baselines=True, baselines_dir=tmp_path / "runs")
    lines = out.splitlines()
    rows = lines[next(n for n, line in enumerate(lines) if line.startswith("itself")) :]
    assert rows[0].split()[:2] == ["itself", "90.0%"] and rows[0].endswith("16.0 tokens, 300 steps")
    assert rows[3].startswith("random codes") and rows[3].endswith("120 steps")
    header = rows[4]
    for row in rows[5:]:
        assert len(row.split()) == 5
        for name in ("itself", "shuffled frames", "blind", "random codes"):
            end = header.index(name) + len(name)
            assert row[:end].endswith("%"), "columns are not below their names"
    kinds = [row.split()[0] for row in rows[5:]]
    assert kinds == sorted(kinds) and "direction" in kinds


def test_a_baseline_that_fails_does_not_lose_the_report(
    run: Callable[..., tuple[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def damaged(path: Path, *_: Any) -> Stub:
        raise CheckpointError(f"{path.name}: not a readable safetensors file")

    write_checkpoint(tmp_path / "runs" / "zero", TWO_CHANGES)
    real = baselines.opened_checkpoint
    opens = lambda path, *more: (damaged if path.name == "random" else real)(path, *more)  # noqa: E731
    monkeypatch.setattr(baselines, "opened_checkpoint", opens)
    with pytest.raises(VideoError, match=r"^1 clips, questions or models failed; they are listed"):
        run(baselines=True, baselines_dir=tmp_path / "runs", as_json=True)
    out, err = capsys.readouterr()
    document = json.loads(out)
    failure = "random codes: random: not a readable safetensors file"
    assert document["n"] == 40 and document["failed"] == [failure]
    assert err.splitlines()[-1] == f"failed: {failure}"
    others = "quantizer.codes=128, attention.hash=none"
    assert list(document["baselines"]) == ["shuffled frames", "blind", others]


class OfTheFirstClip(Stub):
    """Cannot read the others."""

    first: object = None

    def replies(self, items: Sequence[Item]) -> Iterator[Reply]:
        self.first = self.first or items[0].clip
        if items[0].clip != self.first:
            raise VideoError("cannot be decoded")
        return super().replies(items)


def test_what_fails_in_a_baseline_alone_is_told(
    run: Callable[..., tuple[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(baselines, "opened_checkpoint", lambda *_: OfTheFirstClip(0.6))
    lines = [
        {"video": name, "question": "What?", "answer": "red", "kind": kind}
        for name, kind in (("a.mp4", "color"), ("b.mp4", "shape"))
    ]
    suite = tmp_path / "mine.jsonl"
    suite.write_text("\n".join(map(json.dumps, lines)))
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).touch()
    with pytest.raises(VideoError, match="1 clips, questions or models failed"):
        run(suite=str(suite), baselines=True, baselines_dir=tmp_path / "runs")
    out, err = capsys.readouterr()
    assert err.splitlines()[-1] == "failed: random codes: cannot be decoded"
    *_, color, shape = out.splitlines()
    assert len(color.split()) == 5 and len(shape.split()) == 4, "it has no answer of this kind"


def test_the_report_says_what_was_measured(
    run: Callable[..., tuple[str, str]], tmp_path: Path
) -> None:
    document = json.loads(run(as_json=True)[0])
    sha256 = checkpoint_sha256(tmp_path / "ours")
    assert document["model"] == {"name": "ours", "checkpoint_sha256": sha256}
    assert (document["limit"], document["budget"]) == (40, 32), "its default"
    assert document["versions"] == versions() and "cores" in document["machine"]
    assert json.loads(run(as_json=True, budget="auto")[0])["budget"] == "auto"
    (tmp_path / "ours" / LORA).write_bytes(b"other weights")
    assert json.loads(run(as_json=True)[0])["model"]["checkpoint_sha256"] != sha256


def test_the_report_is_of_the_model_that_was_opened(
    run: Callable[..., tuple[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha256 = checkpoint_sha256(tmp_path / "ours")

    def replies(_: Stub, items: Sequence[Item]) -> Iterator[Reply]:
        shutil.rmtree(tmp_path / "ours", ignore_errors=True)  # while it is asked
        yield from (Reply(item.answer, 16) for item in items)

    monkeypatch.setattr(Stub, "replies", replies)
    document = json.loads(run(as_json=True)[0])
    assert document["model"] == {"name": "ours", "checkpoint_sha256": sha256}
    assert (document["steps"], document["budget"], document["accuracy"]) == (300, 32, 1.0)


def test_kinds_of_next_qa_are_told_together_too_and_so_is_what_is_missing(
    run: Callable[..., tuple[str, str]], tmp_path: Path
) -> None:
    lines = [f"{n},what,0,{kind},a,b,c,d,e" for n, kind in ((1, "CW"), (1, "CH"), (2, "TN"))]
    path = tmp_path / "val.csv"
    path.write_text("\n".join(["video,question,answer,type,a0,a1,a2,a3,a4", *lines]))
    (tmp_path / "1.mp4").touch()
    asked: dict[str, Any] = {"suite": str(path), "videos": tmp_path}
    document = json.loads(run(as_json=True, **asked)[0])
    assert document["missing"] == 1 and document["by_group"]["C"]["n"] == document["n"] == 2
    rows = [line.split()[:4] for line in run(**asked)[0].splitlines()[1:4]]
    assert rows == [
        [name, "100.0%", "of", n] for name, n in (("CH", "1"), ("CW", "1"), ("C*", "2"))
    ]


def test_a_bundle_is_told_by_its_digests(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "fake.vqedge")
    hashes = {file.path: file.sha256 for file in bundle.manifest.files}
    assert model_of_bundle(bundle.root, bundle.manifest) == {
        "name": "fake.vqedge",
        "checkpoint_sha256": bundle.manifest.provenance.checkpoint_sha256,
        "encoder_sha256": hashes["encoder.onnx"],
        "llm_sha256": hashes["llm.gguf"],
    }


def test_nothing_is_compared_unless_asked(
    run: Callable[..., tuple[str, str]], opened: list[tuple[str, Any]]
) -> None:
    out, err = run(as_json=True)
    assert "baselines" not in json.loads(out) and "baseline" not in err
    assert opened == [("ours", None)]


def test_a_bundle_is_compared_with_itself_on_shuffled_frames(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The runtime reads no question without a video, so there is no blind row."""

    class Watching(FakeEncoder):
        def encode(self, frames_thwc: Any, budget: int, text: Any = None) -> TokenSet:
            seen.append([frame.tobytes() for frame in frames_thwc])
            return super().encode(frames_thwc, budget)

    seen: list[list[bytes]] = []
    llm = FakeLanguageModel()
    qa = VideoQA(
        Watching(32, 576), FakeBridge(576), llm, write_bundle(tmp_path / "fake.vqedge").manifest
    )
    answerer = BundleAnswerer(qa, budget=8)
    (subject,) = baselines_of(answerer, None, tmp_path, 8)
    assert subject.name == "shuffled frames" and subject.steps is None
    assert "blind, and baselines that were trained, need --checkpoint\n" in capsys.readouterr().err
    (item,) = suite_items("synthetic", 1)
    for text in ("one", "other"):
        llm.enqueue(text)
    replies = [*answerer.replies([item]), *subject.open().replies([item])]
    assert replies == [Reply("one", 8), Reply("other", 8)]
    assert [question for _, question in llm.calls] == [item.question] * 2
    straight, shuffled = seen
    assert straight != shuffled and sorted(straight) == sorted(shuffled)
