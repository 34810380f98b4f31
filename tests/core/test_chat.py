"""`vqedge chat` with stand-ins for the models."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_bundle import write_bundle

from vqedge.commands.chat import HELP, Chat
from vqedge.data.demo import write_demo
from vqedge.errors import ConfigError, VideoError, VqtError
from vqedge_runtime import DecodingOptions, VideoQA
from vqedge_runtime.answers import AnswerStream
from vqedge_runtime.batch import BatchEncoder, Job
from vqedge_runtime.bridge.fake import FakeBridge
from vqedge_runtime.encoders.fake import FakeEncoder
from vqedge_runtime.llm import FakeLanguageModel
from vqedge_runtime.vqt import is_vqt


@pytest.fixture
def qa(tmp_path: Path) -> VideoQA:
    manifest = write_bundle(tmp_path / "fake.vqedge").manifest
    return VideoQA(FakeEncoder(32, 576), FakeBridge(576), FakeLanguageModel(), manifest)


def test_many_questions_about_a_video_that_is_encoded_once(
    qa: VideoQA, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert isinstance(qa.llm, FakeLanguageModel) and isinstance(qa.encoder, FakeEncoder)
    for text in ("A circle.", "Red."):
        qa.llm.enqueue(text)
    Chat(qa, clip, 8).talk(iter(["What moves?\n", "\n", "  What color? \n"]))
    out, err = capsys.readouterr()
    assert out == "A circle.\nRed.\n"
    assert [question for _, question in qa.llm.calls] == ["What moves?", "What color?"]
    assert len({key for key, _ in qa.llm.calls}) == 1 and qa.encoder.calls == 1
    assert "demo.mp4: 3.0 s, 8 tokens" in err and "first token after" in err


def test_earlier_turns_are_read_where_that_is_wanted(
    qa: VideoQA, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert isinstance(qa.llm, FakeLanguageModel)
    for text in ("A circle.", "Red.", "Left.", "One.", "Two."):
        qa.llm.enqueue(text)
    lines = ["What?", "/history on", "Color?", "Where to?", f"/video {clip}", "How many?"]
    Chat(qa, clip).talk(iter([*lines, "/history maybe", "/history off", "And now?"]))
    before = [[turn.answer for turn in turns] for turns in qa.llm.histories]
    assert before == [[], [], ["Red."], [], []]
    err = capsys.readouterr().err
    assert "/history: say on or off" in err
    assert err.count("questions may refer to earlier ones from now on\n") == 1
    assert err.count("questions stand alone from now on\n") == 1


def test_the_oldest_turns_go_four_at_once(qa: VideoQA, clip: Path) -> None:
    """The rest begins otherwise then, and the model has to read it anew."""
    assert isinstance(qa.llm, FakeLanguageModel)
    for number in range(14):
        qa.llm.enqueue(f"{number}.")
    Chat(qa, clip, history=True).talk(iter(["What?"] * 14))
    before = [[turn.answer for turn in turns] for turns in qa.llm.histories]
    assert [len(turns) for turns in before] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 5, 6, 7, 8, 5]
    assert before[9] == ["4.", "5.", "6.", "7.", "8."]


def test_a_video_that_is_come_back_to_is_not_encoded_again(qa: VideoQA, clip: Path) -> None:
    assert isinstance(qa.llm, FakeLanguageModel) and isinstance(qa.encoder, FakeEncoder)
    other = clip.with_name("other.mp4")
    other.write_bytes(clip.read_bytes())
    talk = Chat(qa, clip, 8)
    first = talk.video
    for count, path in enumerate([other, clip, other, clip], start=1):
        talk.talk(iter([f"/video {path}"]))
        assert (qa.encoder.calls, talk.video is first) == (2, count % 2 == 0)
    talk.talk(iter([f"/video {clip} 0.5"]))
    assert qa.encoder.calls == 3 and talk.video.start_s == 0.5
    write_demo(clip)
    os.utime(clip, ns=(0, 0))
    talk.talk(iter([f"/video {clip}"]))
    assert qa.encoder.calls == 4, "the file has changed"


def test_commands(
    qa: VideoQA, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert isinstance(qa.llm, FakeLanguageModel)
    qa.llm.enqueue("Red.")
    saved = tmp_path / "a.vqt"
    lines = ["/tokens", f"/save {saved}", f"/video {saved}", "/help", "What?", "/quit", "never"]
    Chat(qa, clip).talk(iter(lines))
    out, err = capsys.readouterr()
    assert out == "Red.\n"
    assert "32 of 2048 visual tokens; patches of each: 0: 3.1%, 1: 3.1%" in err
    assert f"{saved}: {saved.stat().st_size} bytes" in err
    assert f"{saved}: 3.0 s, 32 tokens" in err
    assert HELP in err


@pytest.mark.parametrize("word", ["/quit", "/exit", "/bye"])
def test_ways_to_leave(
    qa: VideoQA, clip: Path, capsys: pytest.CaptureFixture[str], word: str
) -> None:
    Chat(qa, clip).talk(iter([word, "never"]))
    out, err = capsys.readouterr()
    assert out == "" and err.endswith("; /help for commands, /quit to leave\n")


def test_saving_makes_the_folder(qa: VideoQA, clip: Path, tmp_path: Path) -> None:
    Chat(qa, clip).talk(iter([f"/save {tmp_path}/a/b/c.vqt"]))
    assert is_vqt(tmp_path / "a/b/c.vqt")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/nothing", "vqedge: /nothing: no such command; /help lists them"),
        ("/video", "vqedge: /video: give a path"),
        ("/save", "vqedge: /save: give a path"),
        ("/video none.mp4", "vqedge: none.mp4: no such file"),
        ("/save /dev/null/a.vqt", "vqedge: /dev/null: File exists; check the path"),
    ],
)
def test_what_cannot_be_done_ends_nothing(
    qa: VideoQA, clip: Path, capsys: pytest.CaptureFixture[str], line: str, words: str
) -> None:
    assert isinstance(qa.llm, FakeLanguageModel)
    qa.llm.enqueue("Red.")
    Chat(qa, clip).talk(iter([line, "What?"]))
    out, err = capsys.readouterr()
    assert words in err and out == "Red.\n"


def test_a_segment_is_chosen_by_a_second_of_it(
    qa: VideoQA, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts, named = tmp_path / "parts.vqt", tmp_path / "parts.vqt 2"
    outcomes = BatchEncoder(qa.encoder, qa.manifest, 16, 1.0).run([Job(clip, parts)])
    assert [outcome.error for outcome in outcomes] == [""]
    talk = Chat(qa, parts, span=(1.5, None))
    assert (talk.video.start_s, talk.video.duration_s) == (1.0, 1.0)
    talk.talk(iter([f"/video {parts}  2.5"]))
    assert talk.video.start_s == 2.0
    talk.talk(iter([f"/video {clip} 0.5"]))
    assert (talk.video.start_s, talk.video.duration_s) == (0.5, 2.5)
    assert f"{clip}: 2.5 s from 0.5 s, 32 tokens" in capsys.readouterr().err
    talk.talk(iter([f"/video {parts}", f"/video {parts} nan"]))
    err = capsys.readouterr().err
    assert "say which with a start in seconds" in err
    assert "nan is not a time" in err and talk.video.start_s == 0.5
    talk.talk(iter([f"/video {clip} 0.5 0:02"]))
    assert (talk.video.start_s, talk.video.end_s) == (0.5, 2.0)
    assert f"{clip}: 1.5 s from 0.5 s" in capsys.readouterr().err
    named.write_bytes(clip.read_bytes())
    talk.talk(iter([f"/video {named} 1 2"]))
    assert (talk.video.source, talk.video.start_s, talk.video.end_s) == (named, 1.0, 2.0)
    talk.talk(iter([f"/video {named}"]))
    assert talk.video.source == named


def test_a_file_of_codes_has_its_budget(qa: VideoQA, clip: Path, tmp_path: Path) -> None:
    saved = tmp_path / "a.vqt"
    qa.save(qa.encode(clip, 16), saved)
    talk = Chat(qa, clip, 8)
    for path, count in ((saved, 16), (clip, 8)):
        talk.talk(iter([f"/video {path}"]))
        assert talk.video.tokens.count == count
    with pytest.raises(ConfigError, match="has its tokens already"):
        Chat(qa, saved, 8)


def test_ids_are_shown(qa: VideoQA, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    qa._encoder = FakeEncoder(32, 576, levels=2)
    Chat(qa, clip, 2).talk(iter(["/tokens"]))
    assert "ids: [[0, 1], [2, 3]]" in capsys.readouterr().err


def test_a_first_video_that_cannot_be_read(qa: VideoQA) -> None:
    with pytest.raises(VideoError, match=r"none\.mp4: no such file"):
        Chat(qa, Path("none.mp4"))


def test_saving_writes_over_no_video(qa: VideoQA, clip: Path, tmp_path: Path) -> None:
    before = clip.read_bytes()
    Chat(qa, clip).talk(iter([f"/save {clip}"]))
    assert clip.read_bytes() == before
    assert is_vqt(tmp_path / "demo.mp4.vqt")
    with pytest.raises(VqtError, match=r"demo\.mp4: is there and no \.vqt"):
        qa.save(qa.encode(clip), clip)


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize(
    ("owner", "name", "line", "texts"),
    [
        (AnswerStream, "__next__", "What?", ("Never heard.", "Red.")),
        (VideoQA, "stream", "What?", ("Red.",)),
        (VideoQA, "encode", "/video {} 0.5", ("Red.",)),
    ],
)
def test_an_interrupt_ends_what_is_done_and_at_a_terminal_no_more(
    qa: VideoQA,
    clip: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    name: str,
    line: str,
    texts: tuple[str, ...],
    terminal: bool,
) -> None:
    whole = getattr(owner, name)

    def interrupted(*_: object, **__: object) -> None:
        monkeypatch.setattr(owner, name, whole)
        raise KeyboardInterrupt

    assert isinstance(qa.llm, FakeLanguageModel)
    talk = Chat(qa, clip)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: terminal))
    monkeypatch.setattr(owner, name, interrupted)
    for text in texts:
        qa.llm.enqueue(text)
    with nullcontext() if terminal else pytest.raises(KeyboardInterrupt):
        talk.talk(iter([line.format(clip), "What color?"]))
    assert capsys.readouterr().out == ("\nRed.\n" if terminal else "")


def test_an_answer_that_was_cut_is_told(
    qa: VideoQA, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert isinstance(qa.llm, FakeLanguageModel)
    qa.llm.enqueue("One two three four five.")
    Chat(qa, clip, options=DecodingOptions(max_tokens=2)).talk(iter(["What?"]))
    out, err = capsys.readouterr()
    assert "cut after 2 tokens; --max-tokens allows longer answers" in err and "five" not in out
