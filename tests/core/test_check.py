"""`vqedge check`: what it measures is printed and kept, also where parity is lost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny_bundle import asking_facts, fill_folder, tiny_facts
from tiny_report import parity_report

from vqedge.bundle import BundleFacts, bundle_writer, open_bundle, rewritten
from vqedge.checkpoint import PARITY
from vqedge.commands import check_figures, check_flips
from vqedge.commands import export as exporting
from vqedge.commands.check import run_check
from vqedge.commands.check_figures import answers_told, tokens_told
from vqedge.config import ModelConfig
from vqedge.data.demo import write_demo
from vqedge.data.suites import suite_items, suite_version
from vqedge.errors import (
    BackendUnavailable,
    BundleError,
    CheckpointError,
    ConfigError,
    ParityError,
    UsageError,
)
from vqedge_export import pipeline
from vqedge_export.report import (
    AnswerParity,
    BackendParity,
    ParityReport,
    VariantParity,
    report_from_file,
)
from vqedge_runtime import session
from vqedge_runtime.bridge.fake import FakeBridge
from vqedge_runtime.compare import BackendFigures
from vqedge_runtime.encoders import AUTO, ENCODERS, EncoderBackend
from vqedge_runtime.encoders.fake import FakeEncoder
from vqedge_runtime.llm import FakeLanguageModel
from vqedge_runtime.vqt.header import MAGIC

VARIANT = VariantParity(
    clips=3,
    patches=768,
    nearest_differ=0.01,
    safe_nearest_differ=0.0,
    worst_clip_nearest_differ=0.02,
    maps_differ=0.1,
    feature_cosine=0.99,
)
BACKEND = BackendParity(
    backend="other",
    reference="onnxruntime",
    clips=12,
    clips_same=12,
    ids_differ=0.0,
    safe_ids_differ=0.0,
    margin_where_ids_differ=0.0,
    maps_differ=0.0,
    token_cosine=1.0,
    token_cosine_mean=1.0,
    token_cosine_patches=1.0,
)


QUESTIONS = 16


def measured(top1: float = 1.0) -> ParityReport:
    return parity_report("Q4_0", top1=top1)


def reported(bundle: Path) -> ParityReport:
    report = report_from_file(bundle / "parity.json")
    assert report is not None
    return report


def document(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    (line,) = capsys.readouterr().out.splitlines()
    found: dict[str, Any] = json.loads(line)
    return found


def written(root: Path, facts: BundleFacts) -> Path:
    """A bundle with an earlier report."""
    earlier = measured().model_copy(update={"llm": None, "backends": {"other": BACKEND}})
    with bundle_writer(root) as draft:
        fill_folder(draft.folder)
        (draft.folder / "parity.json").write_text(earlier.to_json())
        return draft.finish(facts).root


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return written(tmp_path / "a.vqedge", tiny_facts())


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[ParityReport]:
    """What measuring against a checkpoint gives."""
    reports = [measured()]
    monkeypatch.setattr(pipeline, "_report", lambda *_: reports[0])
    monkeypatch.setattr(pipeline, "open_checkpoint", lambda path: path)
    return reports


def test_what_was_measured_with_a_checkpoint_is_kept_beside_the_backends(
    bundle: Path, found: list[ParityReport], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run_check(bundle, checkpoint=tmp_path, as_json=True)
    told = document(capsys)
    assert told["parity"]["llm"]["positions"] == 9 and "backends" not in told["parity"]
    kept = reported(bundle)
    assert kept.llm == found[0].llm and kept.measured == "on this machine"
    assert kept.backends == {"other": BACKEND}


def test_what_was_measured_on_videos_is_kept(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check_flips, "flips_of", lambda *_: {"openvino": VARIANT})
    before = reported(bundle)
    run_check(bundle, videos=Path("clips"), as_json=True)
    assert document(capsys)["parity"] == {"flips": {"openvino": VARIANT.model_dump()}}
    assert reported(bundle) == before.model_copy(update={"flips": {"openvino": VARIANT}})


def test_a_lost_parity_is_printed_and_kept_all_the_same(
    bundle: Path, found: list[ParityReport], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    found[0] = measured(top1=0.1)
    with pytest.raises(ParityError, match=r"top1_agreement 0\.1, .*parity\.json has the figures"):
        run_check(bundle, checkpoint=tmp_path, as_json=True)
    told = document(capsys)
    assert told["bundle"] == str(bundle) and told["files"].keys() >= {"parity.json"}
    assert told["parity"]["llm"]["top1_agreement"] == 0.1
    assert reported(bundle).llm == found[0].llm


def stand_in(
    monkeypatch: pytest.MonkeyPatch, other: FakeEncoder, llm: FakeLanguageModel | None = None
) -> None:
    """ONNX Runtime and a backend `other`, neither of which is one; a `llm` that says "red"."""
    llm = llm or saying(["red"] * 2 * QUESTIONS)
    for name, encoder in (("onnxruntime", FakeEncoder(32, 576)), ("other", other)):
        backend = EncoderBackend(lambda *_, encoder=encoder: encoder, lambda: None)  # type: ignore[misc]
        monkeypatch.setitem(ENCODERS, name, backend)
    monkeypatch.setattr(session, "open_bridge", lambda *_: FakeBridge(576))
    monkeypatch.setattr(session, "open_llama_cpp", lambda *_, **__: llm)


def saying(texts: Sequence[str]) -> FakeLanguageModel:
    llm = FakeLanguageModel()
    for text in texts:
        llm.enqueue(text)
    return llm


def test_a_backend_that_computes_the_same_passes(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in(monkeypatch, FakeEncoder(32, 576))
    run_check(bundle, backend="other", limit=QUESTIONS, as_json=True)
    row = document(capsys)["parity"]["backends"]["other"]
    assert (row["maps_differ"], row["ids_differ"], row["clips"]) == (0.0, 0.0, 12)
    assert row["clips_same"] == 12 and row["token_cosine"] == pytest.approx(1.0)
    answers = row["answers"]
    assert answers["version"] == suite_version("synthetic") and answers["chance_of_loss"] == 1.0
    assert answers["questions"] == answers["same"] == QUESTIONS
    assert reported(bundle).backends["other"] == BackendParity.model_validate(row)


@pytest.mark.parametrize("lost", [True, False])
def test_a_backend_that_loses_right_answers_fails(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], lost: bool
) -> None:
    """Also where its index maps and tokens are the same; one that gains some does not."""
    right = [item.answer for item in suite_items("synthetic", 70) if not item.choices]
    wrong = ["nothing"] * len(right)
    texts = right + wrong if lost else wrong + right
    stand_in(monkeypatch, FakeEncoder(32, 576), saying(texts))
    if lost:
        with pytest.raises(ParityError, match=r"right instead of .* chance of .*among equals"):
            run_check(bundle, backend="other", limit=70, as_json=True)
    else:
        run_check(bundle, backend="other", limit=70, as_json=True)
    row = document(capsys)["parity"]["backends"]["other"]
    assert row["maps_differ"] == 0 and row["answers"]["same"] == 70 - len(right)
    assert (row["answers"]["chance_of_loss"] < 0.01) == lost
    assert reported(bundle).backends["other"] == BackendParity.model_validate(row)


def test_a_backend_is_measured_on_the_clips_and_the_questions_of_its_user(
    bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    stand_in(monkeypatch, FakeEncoder(32, 576), saying(["red.", "red"]))
    for name in ("a.mp4", "b.mp4"):
        write_demo(tmp_path / name)
    suite = tmp_path / "mine.jsonl"
    suite.write_text('{"video": "a.mp4", "question": "Which color?", "answer": "red"}\n')
    run_check(bundle, backend="other", videos=tmp_path, suite=str(suite))
    row = reported(bundle).backends["other"]
    assert (row.clips, row.clips_of, reported(bundle).flips) == (2, "videos", {})
    assert row.answers is not None
    assert (row.answers.suite, row.answers.questions, row.answers.same) == ("mine.jsonl", 1, 0)
    assert row.answers.accuracy == row.answers.accuracy_reference == 1.0, "both say red"
    _, tokens, answers = capsys.readouterr().err.splitlines()[:3]
    assert tokens.startswith("fake encoder against fake encoder on 2 videos: 2 the same; 0.00%")
    assert tokens.endswith("token cosine 1.0000")
    assert answers == (
        "0 of 1 answers to mine.jsonl are the same; 100.0% right, 100.0% of the reference; "
        "1 clip is too few to tell a loss: raise --limit"
    )


@pytest.mark.parametrize(("same", "told"), [(1, True), (0, False)])
def test_ids_are_told_where_any_map_is_the_same(same: int, told: bool) -> None:
    figures = BACKEND.model_dump(exclude={"engine", "clips_of", "answers"})
    found = BackendFigures(**figures | {"clips_same": same, "ids_differ": 0.5, "maps_differ": 0.25})
    line = tokens_told(found, "videos")
    assert f"{same} the same; " in line and "25.00% of patches on another part" in line
    assert ("50.00% of ids differ" in line) is told


def test_a_loss_is_said_with_its_chance() -> None:
    answers = AnswerParity(
        suite="synthetic",
        version="1",
        questions=200,
        clips=25,
        same=190,
        accuracy_reference=0.9,
        accuracy=0.89,
        chance_of_loss=0.25,
    )
    assert answers_told(answers) == (
        "190 of 200 answers to synthetic are the same; 89.0% right, 90.0% of the reference, "
        "a loss that has a chance of 0.25 among equals"
    )
    better = answers.model_copy(update={"accuracy": 0.95, "chance_of_loss": 0.97})
    assert answers_told(better).endswith("95.0% right, 90.0% of the reference")


def test_what_would_be_ignored_is_refused(bundle: Path) -> None:
    with pytest.raises(UsageError, match=r"--suite asks .*--backend"):
        run_check(bundle, suite="synthetic", videos=bundle)
    with pytest.raises(UsageError, match="--limit bounds --backend and --videos"):
        run_check(bundle, limit=1, checkpoint=bundle)
    for changes in ({"backend": "other"}, {"limit": 1}, {"suite": "a"}, {"videos": bundle}):
        with pytest.raises(UsageError, match="--files-only: measures nothing"):
            run_check(bundle, files_only=True, **changes)  # type: ignore[arg-type]


def test_the_encoder_that_ask_takes_is_measured_where_none_is_named(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    encoders = {"onnxruntime": FakeEncoder(32, 576), AUTO: FakeEncoder(32, 576)}
    stand_in(monkeypatch, FakeEncoder(32, 576), saying(["red"] * 2 * 64))
    monkeypatch.setattr("vqedge_runtime.encoders.open_encoder", lambda name, *_: encoders[name])
    run_check(bundle, as_json=True)
    row = document(capsys)["parity"]["backends"][AUTO]
    assert (row["clips"], row["answers"]["questions"]) == (12, 64)
    assert reported(bundle).backends.keys() == {"other", AUTO}


@pytest.mark.parametrize("fault", ["reference", "place", "report"])
def test_a_bundle_that_cannot_be_measured_is_whole_all_the_same(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    stand_in(monkeypatch, FakeEncoder(32, 576))
    if fault == "reference":

        def refuse(*_: object) -> None:
            raise BackendUnavailable("only TensorRT runs it; use --backend tensorrt")

        monkeypatch.setitem(ENCODERS, "onnxruntime", EncoderBackend(refuse, lambda: None))  # type: ignore[arg-type]
        told = "only TensorRT runs it; so there is nothing to compare with: --checkpoint"
    elif fault == "place":
        monkeypatch.setattr("os.access", lambda *_: False)
        told = "no report can be written"
    else:
        rewritten(open_bundle(bundle), {PARITY: b'{"variants": {"int8": {}}}'})
        told = "not a parity report of this version"
    run_check(bundle, as_json=True)
    out, err = capsys.readouterr()
    assert json.loads(out)["parity"] == {}
    line = err.splitlines()[1]
    assert line.startswith("parity is not measured: ") and told in line
    with pytest.raises((BackendUnavailable, BundleError, CheckpointError), match=told):
        run_check(bundle, backend="other", limit=1)


def test_what_was_measured_and_cannot_be_kept_is_an_error(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise BundleError("the disk is full")

    stand_in(monkeypatch, FakeEncoder(32, 576), saying(["red"] * 2 * QUESTIONS))
    monkeypatch.setattr(check_figures, "_reported", refuse)
    monkeypatch.setattr("vqedge_runtime.encoders.open_encoder", lambda *_: FakeEncoder(32, 576))
    with pytest.raises(BundleError, match="the disk is full"):
        run_check(bundle, limit=QUESTIONS)


def test_files_alone_are_verified_where_that_is_asked(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (bundle / "parity.json").read_bytes()
    run_check(bundle, files_only=True, as_json=True)
    assert document(capsys)["parity"] == {}
    assert (bundle / "parity.json").read_bytes() == before


def test_a_suite_of_codes_compares_no_backends(bundle: Path, tmp_path: Path) -> None:
    """Both would read the same codes from the file, and neither would run."""
    (tmp_path / "a.vqt").write_bytes(MAGIC)
    suite = tmp_path / "mine.jsonl"
    suite.write_text('{"video": "a.vqt", "question": "Which color?", "answer": "red"}\n')
    with pytest.raises(ConfigError, match=r"^--backend onnxruntime: .*a\.vqt holds no frames"):
        run_check(bundle, backend="onnxruntime", suite=str(suite))


@pytest.mark.parametrize("hears", [True, False])
def test_a_backend_that_is_deaf_to_questions_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], hears: bool
) -> None:
    """Index maps of windows are the same whatever a backend computes; tokens are not."""

    class Other(FakeEncoder):
        def encode(self, *arguments: Any) -> Any:
            codes = super().encode(*arguments)
            if not hears:
                codes.values[:, ::2] *= -1
            return codes

    root = written(tmp_path / "asking.vqedge", asking_facts())
    stand_in(monkeypatch, Other(32, 576))
    if hears:
        run_check(root, backend="other", limit=1, as_json=True)
    else:
        with pytest.raises(ParityError, match=r"token_cosine_patches .*, at least 0\.95 wanted"):
            run_check(root, backend="other", limit=1, as_json=True)
    row = document(capsys)["parity"]["backends"]["other"]
    assert row["maps_differ"] == 0 and (row["token_cosine_patches"] > 0.99) == hears


def test_a_backend_with_other_maps_is_printed_and_kept_all_the_same(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Other(FakeEncoder):
        def encode(self, *arguments: Any) -> Any:
            codes = super().encode(*arguments)
            codes.index_map[...] = 0
            return codes

    stand_in(monkeypatch, Other(32, 576))
    with pytest.raises(ParityError, match=r"maps_differ .*parity\.json has the figures"):
        run_check(bundle, backend="other", limit=1, as_json=True)
    row = document(capsys)["parity"]["backends"]["other"]
    assert row["maps_differ"] > 0.4
    assert reported(bundle).backends["other"].maps_differ == row["maps_differ"]


def test_an_export_that_fails_prints_what_it_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise ParityError("lost", {"llm": {"kl_mean": 9.0}})

    monkeypatch.setattr(pipeline, "export_bundle", fails)
    monkeypatch.setattr(exporting, "model_config_of", lambda _: ModelConfig())
    with pytest.raises(ParityError):
        exporting.run_export(tmp_path, tmp_path / "b.vqedge", as_json=True)
    assert document(capsys)["parity"] == {"llm": {"kl_mean": 9.0}}


def test_an_altered_bundle_is_not_measured(bundle: Path, found: list[ParityReport]) -> None:
    (bundle / "llm.gguf").write_bytes(b"else")
    with pytest.raises(BundleError, match=r"llm\.gguf"):
        run_check(bundle, checkpoint=bundle)
