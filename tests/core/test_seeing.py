"""`vqedge viz`, `vqedge search` and `ask --evidence`, with stand-ins for the models."""

from __future__ import annotations

import builtins
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import vqedge_here
from PIL import Image
from tiny_bundle import write_bundle
from tiny_vqt import LEARNED, header, segment

import vqedge.commands.encode
import vqedge.commands.encoded
import vqedge.commands.search
from vqedge.bundle import Bundle
from vqedge.commands.evidence import evidence_for
from vqedge_runtime import TokenSet, VideoQA
from vqedge_runtime.bridge.fake import FakeBridge
from vqedge_runtime.encoders.fake import FakeEncoder
from vqedge_runtime.llm import FakeLanguageModel
from vqedge_runtime.stored import origin_from_path
from vqedge_runtime.vqt import vqt_bytes


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_bundle(tmp_path_factory.mktemp("bundle") / "fake.vqedge")


@pytest.fixture
def llm(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> FakeLanguageModel:
    """The language model that commands open; encoders are stand-ins, too."""
    fake, encoder = FakeLanguageModel(), FakeEncoder(4, 576)
    for module in (vqedge.commands.encode, vqedge.commands.encoded):
        monkeypatch.setattr(module, "open_encoder", lambda *_: encoder)
    session = VideoQA(encoder, FakeBridge(576), fake, bundle.manifest)
    monkeypatch.setattr(VideoQA, "open", lambda *_, **__: session)
    return fake


@pytest.fixture
def run(
    bundle: Bundle,
    llm: FakeLanguageModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Any:
    """`vqedge ...` in this process and an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VQEDGE_BUNDLE", str(bundle.root))
    return vqedge_here(monkeypatch, capsys)


@pytest.mark.parametrize("end", ["png", "html", "mp4"])
def test_viz_of_a_video_and_of_its_vqt(run: Any, clip: Path, end: str) -> None:
    run("encode", clip, "-o", "a.vqt")
    for video in (clip, "a.vqt"):
        found = run("viz", video, "-o", f"a.{end}")
        assert (found.code, found.lines) == (0, [f"a.{end}"])
        assert Path(f"a.{end}").stat().st_size > 1000


def test_viz_of_standard_input(run: Any, clip: Path) -> None:
    run("encode", clip, "-o", "a.vqt")
    for video in (clip, Path("a.vqt")):
        found = run("viz", "-", "-o", "new/a.html", stdin=video.read_bytes())
        assert (found.code, found.lines) == (0, ["new/a.html"])
        assert "<h1>-</h1>" in Path("new/a.html").read_text()
    found = run("viz", "-", "-o", "a.html", "--budget", "4", stdin=Path("a.vqt").read_bytes())
    assert found.code == 1 and "--budget: - has its tokens already" in found.err


def test_a_vqt_is_drawn_without_a_bundle(
    run: Any, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("encode", clip, "-o", "a.vqt")
    monkeypatch.delenv("VQEDGE_BUNDLE")
    assert run("viz", "a.vqt", "-o", "a.png").code == 0
    with Image.open("a.png") as image:
        assert image.size[0] > 500
    assert run("viz", clip, "-o", "b.png").code == 1


def test_viz_as_json_with_a_question(run: Any, clip: Path, llm: FakeLanguageModel) -> None:
    llm.enqueue("red")
    for total in (-1.0, -1.5, -1.0, -0.5, -4.0):  # all four codes, then without each
        llm.enqueue_scores(total)
    found = run("viz", clip, "-o", "a.png", "--question", "What <b>?", "--json")
    document = json.loads(found.lines[-1])
    assert found.code == 0 and len(found.lines) == 1
    assert (document["out"], document["codes"], document["frames"]) == ("a.png", 4, 8)
    assert (document["question"], document["answer"]) == ("What <b>?", "red")
    assert [item["code"] for item in document["evidence"]] == [3, 0, 1, 2]
    assert document["mass"][0] == [0.25] * 4


@pytest.mark.parametrize("end", ["png", "html", "mp4"])
def test_an_answer_without_words_is_told_and_drawn_without_evidence(
    run: Any, clip: Path, llm: FakeLanguageModel, end: str
) -> None:
    llm.enqueue("")
    found = run("viz", clip, "-o", f"a.{end}", "--question", "What?", "--json")
    document = json.loads(found.lines[-1])
    assert found.code == 0 and Path(document["out"]).stat().st_size > 1000
    assert (document["question"], document["answer"]) == ("What?", "")
    assert "evidence" not in document and "log_likelihood" not in document
    assert "the model gave no words; ask in other words\n" in found.err


def test_rows_that_are_no_codes_are_drawn_without_evidence(
    run: Any, clip: Path, llm: FakeLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TokenSet, "rows_per_code", None)
    llm.enqueue("red")
    found = run("viz", clip, "-o", "a.html", "--question", "What?", "--json")
    document = json.loads(found.lines[-1])
    assert (found.code, document["answer"]) == (0, "red") and "evidence" not in document
    assert "\nred\nno evidence is marked: no row of this bundle's is one code's" in found.err
    assert Path("a.html").exists()


def test_ask_tells_its_evidence(run: Any, clip: Path, llm: FakeLanguageModel) -> None:
    llm.enqueue("red")
    for total in (-1.0, -1.5, -1.0, -0.5, -4.0):
        llm.enqueue_scores(total)
    found = run("ask", clip, "What?", "--evidence")
    assert found.code == 0
    assert found.lines == ["red", "evidence: 0.00 to 3.00 s, codes 3 (+3 nats)"]


def test_evidence_as_json(run: Any, clip: Path, llm: FakeLanguageModel) -> None:
    llm.enqueue("red")
    for total in (-1.0, -1.5, -1.0, -0.5, -4.0):
        llm.enqueue_scores(total)
    document = json.loads(run("ask", clip, "What?", "--evidence", "--json").lines[-1])
    first = document["evidence"][0]
    assert set(first) == {"code", "drop_nats", "start_s", "end_s", "share"}
    assert (first["code"], first["drop_nats"], first["start_s"], first["end_s"]) == (3, 3.0, 0, 3)
    assert first["share"] == pytest.approx(3 / 3.5)
    assert document["evidence_span_s"] == [0, 3] and document["log_likelihood"] == -1.0
    assert document["answer"] == "red"


def test_the_bar_counts_codes_and_not_rows(
    clip: Path, llm: FakeLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A code told in words is several rows."""
    totals, steps = list[int](), list[str]()

    @contextmanager
    def bar(_: str, total: int) -> Iterator[Callable[[str], None]]:
        totals.append(total)
        yield steps.append

    monkeypatch.setattr("vqedge.commands.evidence.progress", bar)
    qa = VideoQA.open("")
    llm.enqueue("red")
    for total in (-1.0, -1.5, -1.0, -0.5, -4.0):
        llm.enqueue_scores(total)
    evidence_for(qa, replace(qa.ask(clip, "What?"), tokens=24), "What?")
    assert totals == [len(steps)] == [4]


def test_without_the_flag_there_is_no_evidence(
    run: Any, clip: Path, llm: FakeLanguageModel
) -> None:
    llm.enqueue("red")
    assert "evidence" not in json.loads(run("ask", clip, "What?", "--json").lines[-1])
    assert len(llm.calls) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["viz", "none.mp4", "-o", "a.png"], "none.mp4"),
        (["viz", "none.vqt", "-o", "a.png"], "none.vqt: no such file"),
        (
            ["viz", "CLIP", "-o", "/dev/null/a.png"],
            "-o /dev/null: File exists; check the path",
        ),
        (["viz", "CLIP", "-o", "a.png", "--budget", "99"], "budget 99"),
        (["search", "CLIP", "none"], "none: no such folder"),
        (["search", "CLIP", "clips"], "clips: no .vqt files in it; make them with: vqedge encode"),
        (["search", "none.vqt", "tokens"], "none.vqt: no such file"),
    ],
)
def test_one_line_for_what_a_user_can_fix(
    run: Any, clip: Path, arguments: list[str], words: str
) -> None:
    Path("clips").mkdir()
    Path("tokens").mkdir()
    Path("tokens/a.vqt").touch()
    found = run(*(clip if word == "CLIP" else word for word in arguments))
    assert (found.code, found.lines) == (1, [])
    last = found.err.splitlines()[-1]
    assert last.startswith("vqedge: ") and words in last
    assert not Path("a.png").exists()


def test_pillow_is_asked_for_before_anything_is_decoded(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without_pillow(name: str, *rest: Any, **more: Any) -> Any:
        if name == "PIL" or name.startswith("PIL."):
            raise ModuleNotFoundError("No module named 'PIL'", name="PIL")
        return real(name, *rest, **more)

    for name in [n for n in sys.modules if n.startswith("vqedge_runtime.viz.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without_pillow)
    found = run("viz", "none.mp4", "-o", "a.png")
    assert found.code == 1
    assert found.err == "vqedge: PIL is not installed; pip install 'vqedge[viz]'\n"


def test_search(run: Any, clip: Path) -> None:
    run("encode", clip, "-o", "tokens/a.vqt")
    run("encode", clip, "-o", "tokens/b.vqt")
    Path("tokens/bad.vqt").write_bytes(b"bad")
    found = run("search", "tokens/a.vqt", "tokens")
    assert (found.code, found.lines) == (0, ["1.0000  b.vqt  0.00-3.00 s"])
    assert "2 clips in 3 files; 3 read anew, 0 gone" in found.err
    assert "left out: tokens/bad.vqt: not a .vqt file" in found.err
    found = run("search", clip, "tokens", "--duplicates", "-n", "1")
    assert found.lines == ["1.0000  a.vqt  0.00-3.00 s  same source"]
    assert "0 read anew" in found.err
    found = run("search", clip, "tokens", "--novel")
    assert (found.code, found.lines) == (0, [])
    assert "0 of 4 codes are new here" in found.err


def test_a_query_is_not_found_under_the_name_of_a_link(run: Any, clip: Path) -> None:
    run("encode", clip, "-o", "elsewhere/a.vqt")
    Path("tokens").mkdir()
    Path("tokens/link.vqt").symlink_to(Path("elsewhere/a.vqt").absolute())
    assert run("search", "tokens/link.vqt", "tokens").lines == []
    assert "4 of 4 codes are new here" in run("search", "tokens/link.vqt", "tokens", "--novel").err
    run("encode", clip, "-o", "tokens/b.vqt")
    Path("outside.vqt").symlink_to("tokens/b.vqt")
    for query in ("tokens/b.vqt", "outside.vqt"):
        assert run("search", query, "tokens").lines == ["1.0000  link.vqt  0.00-3.00 s"]


def test_a_segment_is_compared_with_the_others_of_its_file(run: Any, clip: Path) -> None:
    run("encode", clip, "-o", "tokens/a.vqt", "--segment", "1")
    found = run("search", "tokens/a.vqt", "tokens", "--start", "1.5")
    assert sorted(line.split()[2] for line in found.lines) == ["0.00-1.00", "2.00-3.00"]


def test_search_as_json(run: Any, clip: Path) -> None:
    run("encode", clip, "-o", "tokens/a.vqt")
    document = json.loads(run("search", clip, "tokens", "--json").lines[-1])
    assert set(document["hits"][0]) == {"path", "segment", "start_s", "end_s", "similarity"}
    assert document["index"] == {"files": 1, "clips": 1, "read": 1, "gone": 0}
    document = json.loads(run("search", clip, "tokens", "--duplicates", "--json").lines[-1])
    assert document["hits"][0]["same_source"] is True
    document = json.loads(run("search", clip, "tokens", "--novel", "--json").lines[-1])
    assert (document["codes"], document["novel"]) == (4, [])
    Path("empty").mkdir()
    Path("empty/bad.vqt").touch()
    document = json.loads(run("search", clip, "empty", "--novel", "--json").lines[-1])
    assert [item["nearest"] for item in document["novel"]] == [None] * 4


@pytest.fixture
def query(tmp_path: Path) -> Path:
    """A clip whose codes match those of the only one in `tokens` by 1, 0.71 and 0."""
    (tmp_path / "tokens").mkdir()
    for name, values in (
        ("q.vqt", [[1, 0, 0], [0, 1, 0], [0, 0, 1]]),
        ("tokens/a.vqt", [[1, 0, 0], [1, 1, 0], [1, 0, 0]]),
    ):
        codes = replace(segment().codes, values=np.array(values, np.float16))
        (tmp_path / name).write_bytes(vqt_bytes(header(), [replace(segment(), codes=codes)]))
    return tmp_path / "q.vqt"


def test_clips_that_share_no_first_id_are_not_said_to_be_none(run: Any) -> None:
    head, there = header(**LEARNED), segment(learned=True)
    others = np.array([[7, 2], [8, 4], [9, 0]], np.int32)
    Path("tokens").mkdir()
    Path("tokens/a.vqt").write_bytes(vqt_bytes(head, [there]))
    query = replace(there, codes=replace(there.codes, values=others))
    Path("q.vqt").write_bytes(vqt_bytes(head, [query]))
    found = run("search", "q.vqt", "tokens")
    assert (found.code, found.lines) == (0, [])
    assert "no clip of this bundle's kind shares a first id with it" in found.err
    found = run("search", "q.vqt", "tokens", "--novel")
    assert "3 of 3 codes are new here" in found.err
    assert [len(line.split()) for line in found.lines] == [3] * 3, "none has a nearest"


def test_clips_below_the_threshold_are_not_listed(run: Any, query: Path) -> None:
    (line,) = run("search", query, "tokens", "--threshold", "0.5").lines
    assert line.startswith("0.7")
    assert run("search", query, "tokens").lines == [line]
    found = run("search", query, "tokens", "--threshold", "0.9")
    assert (found.code, found.lines) == (0, [])
    assert "no clip of this bundle's kind with a similarity of 0.9" in found.err


def test_no_more_new_codes_are_listed_than_asked_for(run: Any, query: Path) -> None:
    found = run("search", query, "tokens", "--novel")
    assert [line.split()[1] for line in found.lines] == ["2", "1"]
    found = run("search", query, "tokens", "--novel", "-n", "1")
    assert [line.split()[1] for line in found.lines] == ["2"]
    assert "2 of 3 codes are new here" in found.err
    document = json.loads(run("search", query, "tokens", "--novel", "-n", "1", "--json").lines[-1])
    assert (document["codes"], document["new"]) == (3, 2)
    assert [item["code"] for item in document["novel"]] == [2]


def test_a_query_from_standard_input(run: Any, clip: Path) -> None:
    run("encode", clip, "-o", "tokens/a.vqt")
    Path("-").touch()  # the name means no file
    for query in (clip, Path("tokens/a.vqt")):
        found = run("search", "-", "tokens", stdin=query.read_bytes())
        assert (found.code, found.lines) == (0, ["1.0000  a.vqt  0.00-3.00 s"])
    found = run("search", "-", "tokens", stdin=b"no video")
    assert found.code == 1 and "vqedge: -: is not a video or image" in found.err


def test_a_wrong_folder_is_told_before_the_query_is_encoded(
    run: Any, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vqedge.commands.encoded, "open_encoder", lambda *_: pytest.fail("opened"))
    assert "none: no such folder" in run("search", clip, "none").err


def test_a_video_is_hashed_only_for_duplicates(
    run: Any, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("encode", clip, "-o", "tokens/a.vqt")
    hashed = list[Path]()
    real = origin_from_path
    monkeypatch.setattr(
        vqedge.commands.search, "origin_from_path", lambda path: hashed.append(path) or real(path)
    )
    for flags in ([], ["--novel"], ["--duplicates"]):
        assert run("search", clip, "tokens", *flags).code == 0
    assert hashed == [clip]


def test_a_picture_is_not_drawn_over_its_video(run: Any, clip: Path) -> None:
    before = clip.read_bytes()
    found = run("viz", clip, "-o", clip)
    assert found.code == 1 and "that is the video itself" in found.err
    assert clip.read_bytes() == before


def test_a_picture_is_not_drawn_among_the_frames_of_its_video(run: Any, tmp_path: Path) -> None:
    frames = tmp_path / "frames"
    frames.mkdir()
    for name in ("0.png", "1.png"):
        Image.new("RGB", (32, 32)).save(frames / name)
    before = {path: path.read_bytes() for path in frames.iterdir()}
    for name in ("0.png", "new.png"):
        found = run("viz", "frames", "-o", frames / name)
        assert found.code == 1 and "it would be a frame of the video" in found.err
    assert {path: path.read_bytes() for path in frames.iterdir()} == before
    assert run("viz", "frames", "-o", "frames/tokens.html").code == 0, "no frame"


def test_codes_of_one_picture_are_not_drawn_over_another(
    run: Any, llm: FakeLanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A camera writes the next one while the model answers."""
    ask = VideoQA.ask

    def meanwhile(*given: Any) -> Any:
        Image.new("RGB", (48, 32)).save(tmp_path / "latest.png")
        return ask(*given)

    Image.new("RGB", (32, 32), "red").save(tmp_path / "latest.png")
    monkeypatch.setattr(VideoQA, "ask", meanwhile)
    llm.enqueue("red")
    llm.enqueue_scores(*[-1.0] * 5)
    found = run("viz", "latest.png", "-o", "out/a.png", "--question", "What?")
    assert found.code == 1 and not Path("out").exists()
    assert "latest.png: has changed since it was encoded; run again" in found.err
