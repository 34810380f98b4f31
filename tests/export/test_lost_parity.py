"""An export whose parity is lost: the language model's is seen, and nothing is written."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from tiny_bundle import tiny_facts, write_bundle
from tiny_export import config_of
from tiny_model import tiny_llm, tiny_tokenizer
from tiny_report import parity_report

from vqedge.checkpoint import GRAPH, PARITY
from vqedge.errors import BundleError, ConfigError, ExportError, ParityError, UsageError
from vqedge_export import pipeline
from vqedge_export.parity import llm_parity
from vqedge_export.pipeline import export_bundle
from vqedge_export.report import TOLERANCES, LlmParity, ParityReport

# ---- the language model's


class Deployed:
    """What llama.cpp is to the export: the tiny model, told of rows as `told` gives them."""

    def __init__(self, told: float) -> None:
        self._llm, self._told = tiny_llm(), told

    def logits(self, before: list[int], rows: Any, after: list[int]) -> Any:
        embed = self._llm.get_input_embeddings()
        tokens = torch.from_numpy(self._told * rows)
        pieces = [embed(torch.tensor(before)), tokens, embed(torch.tensor(after))]
        with torch.inference_mode():
            return self._llm(inputs_embeds=torch.cat(pieces)[None]).logits[0].numpy()


def measured(told: float) -> LlmParity:
    @contextmanager
    def opened(_: Path) -> Iterator[Deployed]:
        yield Deployed(told)

    rows = [np.random.default_rng(n).normal(size=(5, 32)).astype(np.float32) for n in range(2)]
    checkpoint: Any = SimpleNamespace(llm=tiny_llm)
    return llm_parity(checkpoint, tiny_tokenizer(), rows, Path("x.gguf"), opened)  # type: ignore[arg-type]


def test_the_same_language_model_agrees_everywhere() -> None:
    found = measured(told=1.0)
    assert found.prompts == 4 and found.positions > 4
    assert found.top1_agreement == 1.0 and 0 <= found.kl_max < 1e-6


def test_a_language_model_that_reads_other_rows_is_outside_its_tolerance() -> None:
    found = measured(told=-1.0)
    assert found.top1_agreement < min(limit.top1_agreement for limit in TOLERANCES.values())
    assert found.kl_mean > TOLERANCES["F16"].kl_mean


# ---- what is written

IMPORTED: Any = object()  # the shape of a backbone that has one of its own


def lost() -> ParityReport:
    return parity_report("F16", ids_differ=0.5, tolerance=TOLERANCES["F16"])


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Writes files of a few bytes and finds that they do not compute the same; the files made."""
    files: list[str] = []

    def write(_: Any, making: Any) -> tuple[()]:
        (making.folder / "encoder.onnx").write_bytes(b"encoder")
        files.append(making.folder.name)
        return ()

    opened = SimpleNamespace(config=config_of("kmeans"))
    for name, stand_in in {
        "open_checkpoint": lambda _: opened,
        "checkpoint_sha256": lambda _: "",
        "_traced": lambda *_: None,
        "_write": write,
        "_report": lambda *_: lost(),
        "save_model": lambda *_: files.append("recorded"),
    }.items():
        monkeypatch.setattr(pipeline, name, stand_in)
    return files


def test_nothing_is_written_and_nothing_recorded(made: list[str], tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    out = tmp_path / "out.vqedge"
    with pytest.raises(ParityError, match=r"ids_differ 0\.5, .*nothing was written") as caught:
        export_bundle(tmp_path / "checkpoint", out, None, record=True)  # type: ignore[arg-type]
    assert caught.value.figures["encoder"]["ids_differ"] == 0.5
    assert len(made) == 1, "base files were written to measure them, targets were not"
    assert [path.name for path in tmp_path.rglob("*")] == ["checkpoint"]


def test_a_bundle_that_may_not_be_replaced_is_found_before_any_work(
    made: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = write_bundle(tmp_path / "out.vqedge", facts=tiny_facts()).root
    monkeypatch.setattr(pipeline, "_traced", lambda *_: pytest.fail("the encoder was traced"))
    with pytest.raises(BundleError, match=r"out\.vqedge"):
        export_bundle(tmp_path, there, None)  # type: ignore[arg-type]
    assert made == []


@pytest.mark.parametrize(("shape", "wanted"), [(None, "int8"), (IMPORTED, "fp32")])
def test_the_lightest_encoder_is_that_of_the_model_unless_it_is_named(
    made: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: Any, wanted: str
) -> None:
    config = config_of("kmeans")
    changed = config.model_copy(
        update={"encoder": config.encoder.model_copy(update={"shape": shape})}
    )
    monkeypatch.setattr(pipeline, "open_checkpoint", lambda _: SimpleNamespace(config=changed))
    seen: list[str] = []

    def write(_: Any, making: Any) -> None:
        seen.append(making.precision)
        raise ExportError("stop")

    monkeypatch.setattr(pipeline, "_write", write)
    for precision in (None, "fp32", "int8"):
        with pytest.raises(ExportError, match="stop"):
            export_bundle(tmp_path, tmp_path / "x.vqedge", None, precision=precision)  # type: ignore[arg-type]
    assert seen == [wanted, "fp32", "int8"]
    with pytest.raises(UsageError, match="--precision fp16: choose one of fp32, int8"):
        export_bundle(tmp_path, tmp_path / "x.vqedge", None, precision="fp16")  # type: ignore[arg-type]


def test_a_bundle_that_was_there_stays(made: list[str], tmp_path: Path) -> None:
    there = write_bundle(tmp_path / "out.vqedge", facts=tiny_facts()).root
    before = {path: path.read_bytes() for path in there.rglob("*") if path.is_file()}
    with pytest.raises(ParityError):
        export_bundle(tmp_path, there, None, overwrite=True)  # type: ignore[arg-type]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("full_after", [0, 1])
def test_what_was_recorded_before_is_not_cut_off_by_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_after: int
) -> None:
    before = {tmp_path / name: f"good {name}".encode() for name in (GRAPH, PARITY)}
    for path, content in before.items():
        path.write_bytes(content)
    flushed: list[Path] = []

    def full(path: Path) -> None:
        if len(flushed) == full_after:
            raise OSError(errno.ENOSPC, "No space left on device")
        flushed.append(path)

    monkeypatch.setattr("vqedge.files.flush", full)
    with pytest.raises(OSError, match="No space"):
        pipeline._record(tmp_path, onnx.ModelProto(), lost())
    kept = list(before)[full_after:]
    assert {path: path.read_bytes() for path in kept} == {path: before[path] for path in kept}
    assert {path.name for path in tmp_path.iterdir()} == {GRAPH, PARITY}


def test_parity_that_was_not_measured_is_not_recorded(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="leave out --no-check"):
        export_bundle(tmp_path, tmp_path / "x", None, check=False, record=True)  # type: ignore[arg-type]
