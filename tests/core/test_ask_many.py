"""`vqedge ask` about a folder of `.vqt` files and with a file of questions, with stand-ins."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_bundle import asking_facts, write_bundle

import vqedge.commands.ask as command
import vqedge.commands.ask_many as ask_many_module
from vqedge.commands.ask_options import AskOptions
from vqedge.data.demo import write_demo
from vqedge.errors import BackendUnavailable, ConfigError, PromptError, VqtError
from vqedge_runtime import VideoQA
from vqedge_runtime.bridge.fake import FakeBridge
from vqedge_runtime.encoders.fake import FakeEncoder
from vqedge_runtime.llm import FakeLanguageModel
from vqedge_runtime.vqt import open_vqt, vqt_bytes

QUESTIONS = ("What color is it?", "How many?")


@pytest.fixture
def llm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeLanguageModel:
    """The language model of the session that the command opens."""
    model = FakeLanguageModel()
    manifest = write_bundle(tmp_path / "fake.vqedge").manifest
    qa = VideoQA(FakeEncoder(32, 576), FakeBridge(576), model, manifest)
    monkeypatch.setattr(VideoQA, "open", lambda *_, **__: qa)
    monkeypatch.setattr(qa, "close", lambda: None)
    monkeypatch.setenv("VQEDGE_BUNDLE", str(tmp_path / "fake.vqedge"))
    return model


@pytest.fixture
def folder(llm: FakeLanguageModel, tmp_path: Path) -> Path:
    """Two clips, one in a folder below."""
    write_demo(tmp_path / "demo.mp4")
    found = tmp_path / "clips"
    (found / "below").mkdir(parents=True)
    with VideoQA.open("") as qa:
        video = qa.encode(tmp_path / "demo.mp4", 8)
        for name in ("a.vqt", "below/b.vqt"):
            qa.save(video, found / name)
    return found


def test_one_question_about_a_folder(
    folder: Path, llm: FakeLanguageModel, capsys: pytest.CaptureFixture[str]
) -> None:
    llm.enqueue("Red.")
    llm.enqueue("Blue.")
    command.run_ask(folder, QUESTIONS[0])
    assert capsys.readouterr().out.splitlines() == [
        f"{folder / 'a.vqt'}\t{QUESTIONS[0]}\tRed.",
        f"{folder / 'below/b.vqt'}\t{QUESTIONS[0]}\tBlue.",
    ]


def test_many_questions_about_one_video_from_a_pipe(
    folder: Path,
    llm: FakeLanguageModel,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for text in ("Red.", "Two."):
        llm.enqueue(text)
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{QUESTIONS[0]}\n\n  {QUESTIONS[1]} \n"))
    clip = folder.parent / "demo.mp4"
    command.run_ask(clip, None, options=AskOptions(questions=Path("-")), as_json=True)
    document = json.loads(capsys.readouterr().out)
    found = [(row["video"], row["question"], row["answer"]) for row in document["answers"]]
    expected = zip(QUESTIONS, ("Red.", "Two."), strict=True)
    assert found == [(str(clip), question, answer) for question, answer in expected]
    assert [row["end_s"] for row in document["answers"]] == [3.0, 3.0]
    assert document["failed"] == [] and document["timings_ms"]["total"] > 0
    assert len({key for key, _ in llm.calls}) == 1


def test_a_file_that_cannot_be_read_is_named_and_stops_nothing(
    folder: Path, llm: FakeLanguageModel, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "c.vqt").write_bytes(b"junk")
    llm.enqueue("Red.")
    llm.enqueue("Blue.")
    with pytest.raises(VqtError, match="1 clips or questions could not be answered"):
        command.run_ask(folder, QUESTIONS[0])
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2
    assert f"failed: {folder / 'c.vqt'}: not a .vqt file" in err


def test_a_long_file_is_opened_once(
    folder: Path,
    llm: FakeLanguageModel,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parts = open_vqt(folder / "a.vqt")
    first = parts.segment(0)
    later = [replace(first, start_us=n * 3_000_000) for n in range(4)]
    header = replace(parts.header, window_us=3_000_000)
    (folder / "a.vqt").write_bytes(vqt_bytes(header, later))
    opened: list[Path] = []
    monkeypatch.setattr(
        "vqedge_runtime.stored.open_vqt", lambda path: opened.append(path) or open_vqt(path)
    )
    for _ in range(5):
        llm.enqueue("Red.")
    command.run_ask(folder, QUESTIONS[0])
    names = [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()]
    spans = ["0-3", "3-6", "6-9", "9-12"]
    wanted = [f"{folder / 'a.vqt'} {span} s" for span in spans]
    assert names == [*wanted, str(folder / "below/b.vqt")]
    assert opened == [folder / "a.vqt", folder / "below/b.vqt"]


@pytest.mark.parametrize("path", ["/dev/zero", "-"])
def test_questions_without_end(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    most = ask_many_module.MOST_TEXT_BYTES
    with open("/dev/zero", encoding="utf-8") as zeros:
        monkeypatch.setattr("sys.stdin", zeros)
        monkeypatch.setattr(ask_many_module, "MOST_TEXT_BYTES", 1 << 20)
        shown = 1 if path == "-" else most >> 20
        with pytest.raises(PromptError, match=f"^--questions {path}: holds more than {shown} MiB;"):
            ask_many_module.questions_from_file(Path(path))


def test_an_answer_is_one_line_of_three_fields(
    folder: Path, llm: FakeLanguageModel, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "q.txt").write_text("\ufeffWhat\tis it?\n", encoding="utf-8")
    llm.enqueue("Red,\nand\tround.")
    llm.enqueue("Blue.")
    command.run_ask(folder, None, options=AskOptions(questions=tmp_path / "q.txt"))
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [row[1:] for row in lines] == [
        ["What is it?", "Red, and round."],
        ["What is it?", "Blue."],
    ]


def test_a_name_stays_one_that_can_be_opened(
    folder: Path, llm: FakeLanguageModel, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = folder / "at  3.20.15\u202fPM.vqt"
    (folder / "a.vqt").rename(odd)
    for text in (" Red. ", "Blue."):
        llm.enqueue(text)
    command.run_ask(folder, QUESTIONS[0])
    assert f"{odd}\t{QUESTIONS[0]}\tRed." in capsys.readouterr().out.splitlines()


def test_no_field_moves_the_cursor(
    folder: Path, llm: FakeLanguageModel, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "a.vqt").rename(folder / "a\x1b[31m\x9b1m.vqt")
    for text in ("R\x1b]0;ed\x07", "a\u200db"):
        llm.enqueue(text)
    command.run_ask(folder, "Which\x1b[2J?")
    assert [line.split("\t") for line in capsys.readouterr().out.splitlines()] == [
        [rf"{folder}/a\x1b[31m\x9b1m.vqt", r"Which\x1b[2J?", r"R\x1b]0;ed\x07"],
        [f"{folder}/below/b.vqt", r"Which\x1b[2J?", "a\u200db"],
    ]


def test_a_question_that_is_too_long_is_named_and_stops_nothing(
    folder: Path,
    llm: FakeLanguageModel,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    ask = llm.ask

    def refusing(rows: Any, question: str, *more: Any) -> Any:
        if len(question) > 100:
            raise PromptError("needs a context of 9000")
        llm.enqueue("Red.")
        return ask(rows, question, *more)

    monkeypatch.setattr(llm, "ask", refusing)
    (tmp_path / "q.txt").write_text(f"What?\nIs it {'very ' * 30}red?\nHow many?\n")
    with pytest.raises(VqtError, match="2 clips or questions could not be answered"):
        command.run_ask(folder, None, options=AskOptions(questions=tmp_path / "q.txt"))
    out, err = capsys.readouterr()
    assert [line.split("\t")[1] for line in out.splitlines()] == ["What?", "How many?"] * 2
    named = f"failed: {folder / 'a.vqt'}, 'Is it very very "
    assert any(line.startswith(named) and line.endswith("9000") for line in err.splitlines())


def test_answers_about_many_clips_come_before_all_are_done(
    folder: Path, llm: FakeLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_all, together = llm.ask_many, list[int]()

    def noting(prompts: Any, *more: Any) -> Any:
        together.append(len(prompts))
        return answer_all(prompts, *more)

    monkeypatch.setattr(llm, "ask_many", noting)
    for number in range(15):
        (folder / f"c{number}.vqt").write_bytes((folder / "a.vqt").read_bytes())
    for _ in range(17):
        llm.enqueue("Red.")
    command.run_ask(folder, QUESTIONS[0])
    assert together == [15, 2]


def test_where_every_question_is_an_encoding_answers_come_before_all_are_done(
    llm: FakeLanguageModel,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    qa = VideoQA.open("")
    qa.manifest = write_bundle(tmp_path / "asking.vqedge", facts=asking_facts()).manifest
    answer_all, encoded = llm.ask_many, list[int]()

    def noting(*given: Any) -> Any:
        assert isinstance(qa.encoder, FakeEncoder)
        encoded.append(qa.encoder.calls)
        return answer_all(*given)

    monkeypatch.setattr(llm, "ask_many", noting)
    for _ in range(17):
        llm.enqueue("Yes.")
    write_demo(tmp_path / "demo.mp4")
    (tmp_path / "q.txt").write_text("\n".join(f"Is it {number}?" for number in range(17)))
    command.run_ask(tmp_path / "demo.mp4", None, options=AskOptions(questions=tmp_path / "q.txt"))
    assert encoded == [15, 17] and len(capsys.readouterr().out.splitlines()) == 17


def test_a_folder_is_sorted_by_given_answers(
    folder: Path, llm: FakeLanguageModel, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "q.txt").write_text("Does it move?\nIs it red?\n")
    options = AskOptions(questions=tmp_path / "q.txt", choices=("yes", "no"))
    wanted = ["yes", "no", "no", "yes"]
    for as_json in (False, True):
        for answer in wanted:
            llm.enqueue_scores(*((-1.0, -9.0) if answer == "yes" else (-9.0, -1.0)))
        command.run_ask(folder, None, options=options, as_json=as_json)
    *lines, document = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[2] for line in lines] == wanted
    rows = json.loads(document)["answers"]
    assert [row["answer"] for row in rows] == wanted
    for row in rows:
        assert list(row["choices"]) == ["yes", "no"]
        assert max(row["choices"], key=row["choices"].get) == row["answer"]
        assert sum(row["choices"].values()) == pytest.approx(1)


def test_choices_that_are_too_long_for_one_question_stop_no_other(
    folder: Path,
    llm: FakeLanguageModel,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    score, calls = llm.score_choices, list[str]()

    def refusing(*given: Any) -> Any:
        calls.append(given[1])
        if len(calls) == 1:
            raise PromptError("needs a context of 9000")
        return score(*given)

    monkeypatch.setattr(llm, "score_choices", refusing)
    with pytest.raises(VqtError, match="1 clips or questions could not be answered"):
        command.run_ask(folder, QUESTIONS[0], options=AskOptions(choices=("yes", "no")))
    out, err = capsys.readouterr()
    assert out == f"{folder / 'below/b.vqt'}\t{QUESTIONS[0]}\tyes\n" and len(calls) == 2
    assert f"failed: {folder / 'a.vqt'}, '{QUESTIONS[0]}': needs a context of 9000" in err


def test_what_does_not_go_together_is_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="one video"):
        command.run_ask(folder, QUESTIONS[0], options=AskOptions(span=(1.0, None)))
    with pytest.raises(ConfigError, match="one video"):
        command.run_ask(folder, QUESTIONS[0], options=AskOptions(budget=8))
    with pytest.raises(ConfigError, match="one video"):
        command.run_ask(folder, QUESTIONS[0], options=AskOptions(evidence=True))
    with pytest.raises(ConfigError, match="not both"):
        command.run_ask(folder, QUESTIONS[0], options=AskOptions(questions=tmp_path / "q.txt"))
    with pytest.raises(PromptError, match=r"q\.txt: No such file or directory; give a text file"):
        command.run_ask(folder, None, options=AskOptions(questions=tmp_path / "q.txt"))
    (tmp_path / "q.txt").write_text("\n \n")
    with pytest.raises(PromptError, match="no question"):
        command.run_ask(folder, None, options=AskOptions(questions=tmp_path / "q.txt"))


def test_codes_from_files_open_no_encoder(
    folder: Path, llm: FakeLanguageModel, capsys: pytest.CaptureFixture[str]
) -> None:
    qa = VideoQA.open("")
    qa._encoder = lambda: pytest.fail("an encoder was opened")
    for text in ("Red.", "Red.", "Blue."):
        llm.enqueue(text)
    command.run_ask(folder / "a.vqt", QUESTIONS[0], as_json=True)
    command.run_ask(folder, QUESTIONS[0], as_json=True)
    found = capsys.readouterr()
    documents = [json.loads(line) for line in found.out.splitlines()]
    assert {row["backend"]["encoder"] for row in documents} == {"none (codes from a file)"}
    assert found.err.startswith("encoder: none (codes from a file); llm: fake\n")


def test_an_encoder_is_opened_once_when_it_is_needed(folder: Path) -> None:
    opened: list[FakeEncoder] = []

    def opens() -> FakeEncoder:
        opened.append(FakeEncoder(32, 576))
        return opened[-1]

    made = VideoQA.open("")
    qa = VideoQA(opens, made.bridge, made.llm, made.manifest)
    qa.encode(folder / "a.vqt")
    assert not opened
    for _ in range(2):
        qa.encode(folder.parent / "demo.mp4")
    assert qa.backend.encoder == "fake encoder" and len(opened) == 1
    qa.close()
    never = VideoQA(opens, made.bridge, made.llm, made.manifest)
    never.close()
    with pytest.raises(BackendUnavailable, match="closed"):
        never.encode(folder.parent / "demo.mp4")
    assert len(opened) == 1


@pytest.mark.parametrize("many", [False, True])
def test_a_video_that_ends_early_is_told(
    many: bool,
    llm: FakeLanguageModel,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_demo(tmp_path / "demo.mp4")
    (tmp_path / "q.txt").write_text(QUESTIONS[0])
    whole, note = VideoQA.encode, "ends at 1 s, earlier than it says"
    monkeypatch.setattr(VideoQA, "encode", lambda *asked: replace(whole(*asked), note=note))
    llm.enqueue("Red.")
    wanted = AskOptions(questions=tmp_path / "q.txt") if many else AskOptions()
    command.run_ask(tmp_path / "demo.mp4", None if many else QUESTIONS[0], options=wanted)
    assert f"{tmp_path / 'demo.mp4'}: {note}" in capsys.readouterr().err
