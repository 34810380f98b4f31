"""`bench`, `doctor`, `inspect`, `check` and `eval` on the real bundle."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vqedge.bundle import open_bundle
from vqedge.commands.bench import run_bench
from vqedge.commands.check import run_check
from vqedge.commands.doctor import run_doctor
from vqedge.commands.evaluate import EvalOptions, run_eval
from vqedge.commands.inspect import facts_of
from vqedge.errors import BundleError, ConfigError
from vqedge_export.report import report_of


def last_json(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    document: dict[str, object] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return document


@pytest.mark.slow
def test_bench_measures_every_stage(
    bundle: Path, demo_clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_bench(demo_clip, bundle, runs=1, as_json=True)
    document = last_json(capsys)
    stages = document["stages_ms"]
    assert isinstance(stages, dict)
    assert set(stages) == {"decode", "preprocess", "encode", "prefill"}
    assert all(ms > 0 for ms in stages.values())
    assert document["tokens"] == 32
    assert document["unreduced_tokens"] == 2048
    positive = ("open_ms", "cold_first_token_ms", "reask_first_token_ms", "tokens_per_s")
    for key in (*positive, "peak_rss_mb"):
        assert float(str(document[key])) > 0
    assert float(str(document["unreduced_over_llm"])) > 1


def test_doctor_is_content_with_a_good_bundle(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_doctor(bundle, as_json=True)
    checks = last_json(capsys)["checks"]
    assert isinstance(checks, list)
    names = {row["check"] for row in checks}
    assert {"python", "video decoding", "bundle", "llama.cpp decode"} <= names


def test_doctor_fails_on_a_damaged_bundle(
    bundle_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (bundle_copy / "encoder.onnx").write_bytes(b"")
    assert not run_doctor(bundle_copy, as_json=True)
    rows = last_json(capsys)["checks"]
    assert isinstance(rows, list)
    assert any(row["check"] == "bundle" and not row["ok"] and row["fix"] for row in rows)


def test_what_to_do_can_be_copied_from_a_narrow_terminal(
    bundle_copy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = bundle_copy.rename(bundle_copy.with_name("tiny.vqedge"))
    (tiny / "llm.gguf").unlink()
    monkeypatch.setenv("COLUMNS", "40")
    assert not run_doctor(tiny)
    make = f"in a clone of the repository: vqedge assemble models/tiny -o {tiny} --overwrite"
    lines = capsys.readouterr().out.splitlines()
    assert f"fix bundle: copy the bundle again, or make it {make}" in lines


def test_inspect_knows_every_kind(bundle: Path, checkpoint: Path, tmp_path: Path) -> None:
    kind, facts = facts_of(bundle)
    assert kind == "bundle" and facts["parity"]["encoder"]["patches"] > 0
    kind, facts = facts_of(checkpoint)
    assert kind == "checkpoint" and facts["config"]["quantizer"]["codes"] == 64
    kind, facts = facts_of(bundle / "encoder.onnx")
    assert kind == "onnx" and facts["inputs"][0]["shape"] == [8, 224, 224, 3]
    kind, facts = facts_of(bundle / "llm.gguf")
    assert kind == "gguf" and facts["metadata"]["general.architecture"] == "llama"
    with pytest.raises(BundleError, match="not a bundle"):
        facts_of(tmp_path)


def test_check_verifies_files_and_measures_parity(
    bundle_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_check(bundle_copy, limit=1)
    assert capsys.readouterr().out.strip() == str(bundle_copy)
    report = report_of(open_bundle(bundle_copy))
    found = report.backends["auto"]
    assert found.reference == "onnxruntime CPU fp32" and found.maps_differ < 0.4
    assert report.encoder is not None, "what was measured at export stays"
    (bundle_copy / "llm.gguf").unlink()
    with pytest.raises(BundleError, match=r"llm\.gguf"):
        run_check(bundle_copy)


def test_eval_reads_a_users_questions(
    bundle: Path, demo_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"video": str(demo_clip), "question": "What color is the circle?", "answer": "Red."},
        {
            "video": str(demo_clip),
            "question": "What color is the circle?",
            "answer": "blue",
            "choices": ["red", "blue"],
            "kind": "choice",
        },
    ]
    suite = tmp_path / "mine.jsonl"
    suite.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run_eval(str(suite), bundle, as_json=True)
    document = last_json(capsys)
    assert document["n"] == 2 and document["accuracy"] == 0.5
    by_kind = document["by_kind"]
    assert isinstance(by_kind, dict)
    found = {kind: (row["n"], row["accuracy"]) for kind, row in by_kind.items()}
    assert found == {"all": (1, 1.0), "choice": (1, 0.0)}


def test_eval_wants_one_of_bundle_and_checkpoint(bundle: Path, checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match="not both"):
        run_eval("synthetic", bundle, options=EvalOptions(checkpoint=checkpoint))
