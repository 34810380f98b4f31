"""docs/json.md lists the keys that commands print with `--json` and their types: all, no others.

Models are stand-ins; what makes the documents is real, unless it would take minutes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from command_line import vqedge_here
from pydantic import BaseModel
from test_baselines import Stub, write_checkpoint
from test_engines import record
from test_reducers_command import ASKING
from timed_llm import Timed
from tiny_bundle import write_bundle
from tiny_report import parity_report
from typer.main import get_command

import vqedge.cli
from vqedge.checkpoint import METRICS
from vqedge.commands import bench, doctor, encode, encoded, evaluate, fetch, words
from vqedge.commands import reducers as reducing
from vqedge.commands.reducer_costs import Costs
from vqedge.config import ModelConfig
from vqedge.data.suites import Item
from vqedge.errors import BackendUnavailable, CheckpointError, VideoError
from vqedge.evaluate import Reply
from vqedge_export.report import (
    TOLERANCES,
    AnswerParity,
    BackendParity,
    CodebookParity,
    MeasuredVariant,
    ParityReport,
    VariantParity,
)
from vqedge_runtime import VideoQA
from vqedge_runtime.bridge.fake import FakeBridge
from vqedge_runtime.encoders import EncoderBackend
from vqedge_runtime.encoders.fake import FakeEncoder
from vqedge_runtime.video_words import PromptPiece

PAGE = (Path(__file__).parents[2] / "docs/json.md").read_text(encoding="utf-8")
TYPES: dict[str, tuple[type, ...]] = {
    "text": (str,),
    "count": (int,),
    "number": (int, float),
    "yes or no": (bool,),
    "object": (dict,),
    "null": (type(None),),
}
Document = dict[str, Any]


def documented() -> dict[str, dict[str, str]]:
    """The types of the keys of every section, without their units."""
    found = {}
    for section in PAGE.split("\n## ")[1:]:
        heading, _, text = section.partition("\n")
        rows = re.findall(r"^\| `([^`]+)` \| ([^|,]+)[^|]* \|", text, flags=re.MULTILINE)
        found[heading] = dict(rows)
    return found


SECTIONS = documented()


def leaves(value: Any, told: dict[str, str], path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a document by its key as the page writes it, down to what it calls objects."""
    if isinstance(value, dict) and told.get(path) != "object":
        data = any(key.startswith(f"{path}{{}}") for key in told)
        for name, inner in value.items():
            yield from leaves(inner, told, f"{path}{{}}" if data else f"{path}.{name}".lstrip("."))
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner, told, f"{path}[]")
    else:
        yield path, value


def fits(value: Any, told: str) -> bool:
    """Whether a value is of a type as the page writes it; a truth value is no number."""
    names = [told] if told in TYPES else told.split(" or ")
    wanted = {kind for name in names for kind in TYPES[name]}
    return type(value) in wanted


class Rig:
    """A folder, a bundle `fake.vqedge` of stand-ins, and commands run on them."""

    def __init__(
        self, clip: Path, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.clip, self.patch, self._run = clip, patch, vqedge_here(patch, capsys)
        self.bundle = write_bundle(Path("fake.vqedge").absolute())
        self.encoder, self.llm = FakeEncoder(4, 576), Timed()
        patch.setenv("VQEDGE_BUNDLE", str(self.bundle.root))
        patch.setattr(VideoQA, "open", lambda *_, **__: self.session())
        for module in (encode, encoded, words):
            patch.setattr(module, "open_encoder", lambda *_: self.encoder)

    def session(self) -> VideoQA:
        self.llm.closed = False
        return VideoQA(self.encoder, FakeBridge(576), self.llm, self.bundle.manifest)

    def __call__(self, *arguments: object, code: int = 0) -> Document:
        """The document that `vqedge ... --json` prints, and nothing else."""
        found = self._run(*arguments, "--json")
        assert found.code == code, found.err
        document: Document = json.loads(found.out)
        return document

    def encode(self, *arguments: object) -> None:
        self("encode", self.clip, *arguments)


@pytest.fixture
def rig(
    demo_clip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Rig:
    monkeypatch.chdir(tmp_path)
    return Rig(demo_clip, monkeypatch, capsys)


# ---- what each section's commands print


def asked(rig: Rig) -> Iterator[Document]:
    yield rig("ask", rig.clip, "What?", "--evidence")
    rig.encoder = FakeEncoder(4, 576, levels=2)
    yield rig("ask", rig.clip, "What?", "--choices", "red|blue")


def asked_many(rig: Rig) -> Iterator[Document]:
    rig.encode("-o", "tokens/a.vqt", "--segment", "2")
    Path("tokens/bad.vqt").touch()
    yield rig("ask", "tokens", "What?", code=1)
    yield rig("ask", "tokens", "What?", "--choices", "red|blue", code=1)


def encoded_files(rig: Rig) -> Iterator[Document]:
    Path("bad.mp4").write_bytes(b"no video")
    yield rig("encode", rig.clip, "bad.mp4", "-o", "out", code=1)


def encoded_words(rig: Rig) -> Iterator[Document]:
    rig.patch.setattr(words, "vocabulary_of_bundle", lambda _: None)
    rig.patch.setattr(words, "open_bridge", lambda *_: FakeBridge(576))
    rig.patch.setattr(words, "prompt_piece", lambda *_: PromptPiece("words", (1, 2)))
    yield rig("encode", rig.clip, "--as", "text")


def drawn(rig: Rig) -> Iterator[Document]:
    yield rig("viz", rig.clip, "-o", "a.html", "--question", "What?")


def searched(rig: Rig) -> Iterator[Document]:
    for name in ("a", "b"):
        rig.encode("-o", f"tokens/{name}.vqt")
    Path("tokens/bad.vqt").write_bytes(b"bad")
    yield rig("search", "tokens/a.vqt", "tokens", "--duplicates")
    Path("alone").mkdir()
    Path("tokens/b.vqt").rename("alone/b.vqt")
    yield rig("search", "alone/b.vqt", "alone", "--novel")


def trained(rig: Rig) -> Iterator[Document]:
    rig.patch.setattr("vqedge.train.train", lambda *_: None)
    yield rig("train", Path(__file__).parents[2] / "recipes/world.yaml", "-o", "run")


def imported(rig: Rig) -> Iterator[Document]:
    Path("out").mkdir()
    Path("out/config.json").touch()
    found = SimpleNamespace(ignored=("a.weight",), config=ModelConfig())
    module = "vqedge_export.hf.importing"
    rig.patch.setattr(f"{module}.checkpoint_from_folder", lambda *_, **__: found)
    rig.patch.setattr(f"{module}.require_absent", lambda _: None)
    yield rig("import", ".", "-o", "out")


def bundled(rig: Rig) -> Iterator[Document]:
    yield rig("check", rig.bundle.root, "--files-only")
    rig.patch.setattr("vqedge_export.assemble.assemble_bundle", lambda *_, **__: rig.bundle)
    rig.patch.setattr("vqedge_export.report.report_from_file", lambda _: None)
    yield rig("assemble", "models/tiny", "-o", "out.vqedge", "--precision", "fp32")


def reported(_: Rig) -> Iterator[Document]:
    """A report in which everything was measured."""
    some = parity_report("Q8_0", tolerance=TOLERANCES["Q8_0"]).model_dump()
    answers = zeros(AnswerParity, suite="a", version="b")
    named = {"backend": "a", "engine": None, "reference": "b", "clips_of": "videos"}
    found = {
        "codebook": zeros(CodebookParity),
        "variants": {"int8": zeros(MeasuredVariant, sha256="ab")},
        "flips": {"int8": zeros(VariantParity)},
        "backends": {"openvino": zeros(BackendParity, **named, answers=answers)},
    }
    yield ParityReport.model_validate(some | found).model_dump(mode="json")


def zeros(record: type[BaseModel], **values: Any) -> Document:
    return dict.fromkeys(record.model_fields, 0) | values


def built(rig: Rig) -> Iterator[Document]:
    engine = record(file="llm.gguf")
    rig.patch.setattr("vqedge_export.tensorrt.build.require_buildable", lambda *_: None)
    rig.patch.setattr(
        "vqedge_export.tensorrt.into_bundle.build_into_bundle", lambda *_: (rig.bundle, engine)
    )
    yield rig("build", rig.bundle.root, "--plugin", "none")


def evaluated(rig: Rig) -> Iterator[Document]:
    Path("bad.mp4").write_bytes(b"no video")
    lines = [
        {"video": str(video), "question": "What?", "answer": "red"}
        for video in (rig.clip, "bad.mp4")
    ]
    Path("mine.jsonl").write_text("\n".join(map(json.dumps, lines)))
    yield rig("eval", "--suite", "mine.jsonl", code=1)
    stub = Stub(0.6, {"blind": 0.2})
    rig.patch.setattr(evaluate, "opened_checkpoint", lambda *_: stub)
    checkpoint = write_checkpoint(Path("checkpoint"))
    asking = ("--checkpoint", checkpoint, "--suite", "captions", "--limit", "8")
    yield rig("eval", *asking, "--baselines")
    choices = dict.fromkeys(("a0", "a1", "a2", "a3", "a4"), "red")
    row = {"video": rig.clip.stem, "question": "what", "answer": "0", "type": "CW", **choices}
    Path("val.csv").write_text(f"{','.join(row)}\n{','.join(row.values())}\n")
    named = ("--suite", "val.csv", "--videos", rig.clip.parent)
    yield rig("eval", "--checkpoint", checkpoint, *named)


class OfOneClip(Stub):
    """Can read the first clip only."""

    clip: object = None

    def replies(self, items: Sequence[Item]) -> Iterator[Reply]:
        self.clip = self.clip or items[0].clip
        if items[0].clip != self.clip:
            raise VideoError("it is not the first")
        return super().replies(items)


def reduced(rig: Rig) -> Iterator[Document]:
    import torch

    from vqedge.model.reducers.registry import reducer_quantizer

    seen = SimpleNamespace(
        quantizer=reducer_quantizer(ASKING).eval(),
        config=ASKING,
        seen=lambda _: torch.rand(8, 384),
        text_of=lambda _: torch.rand(8),
    )
    costs = Costs(seen, [None])  # type: ignore[arg-type,list-item]
    stub: Any = OfOneClip(0.6)
    stub.config, stub.encoder = (
        ModelConfig(),
        SimpleNamespace(quantizer=SimpleNamespace(quantizer=None)),
    )

    def opens(path: Path) -> Any:
        if path.name == "damaged":
            raise CheckpointError("damaged: not a readable safetensors file")
        return stub

    rig.patch.setattr(reducing, "opened_checkpoint", opens)
    rig.patch.setattr("vqedge.commands.reducer_costs.Costs", lambda *_: costs)
    for name, made in (
        ("_reduced", lambda _: stub),
        ("_prefill", 2.5),
        ("_quantizer", None),
        ("_timed", [None]),
    ):
        rig.patch.setattr(reducing._Bench, name, lambda *_, made=made: made)
    checkpoint = write_checkpoint(Path("trained/means"))
    write_checkpoint(Path("trained/damaged"))
    flags = ("--checkpoint", checkpoint, "--reducers-dir", "trained", "--limit", "12")
    asking = ("eval", "--reducers", "vqtoken", "--budget", "4", *flags)
    yield rig(*asking, code=1)
    (checkpoint / METRICS).unlink()
    imported = rig(*asking, code=1)
    assert imported["checkpoint"]["steps"] is imported["rows"][-1]["steps"] is None
    yield imported


def benched(rig: Rig) -> Iterator[Document]:
    def fails(*_: Any) -> Any:
        raise BackendUnavailable("it is not here")

    opens = {"onnxruntime": lambda *_: FakeEncoder(4, 576), "openvino": fails}
    backends = {name: EncoderBackend(open_, lambda: None) for name, open_ in opens.items()}
    rig.patch.setattr("vqedge_runtime.bench.ENCODERS", backends)
    rig.patch.setattr("vqedge_runtime.bench.available", lambda *_: list(backends))
    rig.patch.setattr(bench, "_LOW_PRECISION", {"a"})
    rig.patch.setattr(bench, "cpu_flags", lambda: {"a"})
    yield rig("bench", rig.clip, "--runs", "1")
    document = rig("bench", "--runs", "1")
    assert f"`{document['video']}`" in PAGE, "no path"
    yield document


def inspected(rig: Rig) -> Iterator[Document]:
    rig.encode("-o", "a.vqt")
    yield rig("inspect", "a.vqt")


def doctored(rig: Rig) -> Iterator[Document]:
    rig.patch.setattr(doctor, "CHECKS", (doctor._python,))
    yield rig("doctor")


def fetched(rig: Rig) -> Iterator[Document]:
    weights = SimpleNamespace(source=None, path=Path("a.gguf"), sha256="ab" * 32)
    rig.patch.setattr(fetch, "fetch", lambda *_, **__: weights)
    rig.patch.setattr(fetch, "licence_line", lambda _: "MIT")
    yield rig("fetch")


PRINTED: dict[str, Callable[[Rig], Iterator[Document]]] = {
    "ask": asked,
    "ask about many": asked_many,
    "encode": encoded_files,
    "encode --as": encoded_words,
    "viz": drawn,
    "search": searched,
    "train": trained,
    "import": imported,
    "export, assemble, check": bundled,
    "parity": reported,
    "build": built,
    "eval": evaluated,
    "eval --reducers": reduced,
    "bench": benched,
    "inspect": inspected,
    "doctor": doctored,
    "fetch": fetched,
}


@pytest.mark.parametrize("section", PRINTED)
def test_the_page_lists_what_is_printed(rig: Rig, section: str) -> None:
    told = SECTIONS[section]
    found = [leaf for document in PRINTED[section](rig) for leaf in leaves(document, told)]
    assert {key for key, _ in found} == set(told)
    wrong = [f"{key}: {value!r}" for key, value in found if not fits(value, told[key])]
    assert not wrong


def test_every_command_that_prints_json_has_a_section() -> None:
    commands = get_command(vqedge.cli.app).commands  # type: ignore[attr-defined]
    printing = {
        name
        for name, command in commands.items()
        if any("--json" in option.opts for option in command.params)
    }
    assert list(SECTIONS) == list(PRINTED)
    assert printing == set(re.findall(r"\w+", " ".join(SECTIONS))) & set(commands)


def test_a_page_that_tells_something_else_is_noticed() -> None:
    told = {"a": "count", "b[].c": "text or null", "d{}": "number"}
    found = dict(leaves({"a": True, "b": [{"c": None}], "d": {"x": 1}, "e": {"f": 2}}, told))
    assert found == {"a": True, "b[].c": None, "d{}": 1, "e.f": 2}
    assert not fits(True, "count") and fits(None, "text or null") and not fits(1, "yes or no")
