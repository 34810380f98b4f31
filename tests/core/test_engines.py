"""Which engine may run where, and the cache they are kept in."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_bundle import asking_facts, fill_folder, tiny_facts, write_bundle

from vqedge import engines
from vqedge.bundle import Bundle, EngineRecord, Manifest, bundle_writer, open_bundle, rewritten
from vqedge.engines import (
    EngineHost,
    EngineIdentity,
    cache_engine,
    cached_engine,
    cached_plugin,
    encoder_sha256,
    fitting_engine,
    misfit,
    plugin_folder,
    timing_cache,
    version_of,
)
from vqedge.errors import BackendUnavailable, BundleError
from vqedge.files import disk_fault, file_sha256

ONNX = "a" * 64
JETSON = EngineHost("tensorrt", "10.3.0", "8.7")


def record(**changes: Any) -> EngineRecord:
    tensor = {"name": "frames", "dtype": "uint8", "shape": (8, 224, 224, 3)}
    values: dict[str, Any] = {
        "key": "k",
        "file": "engines/k.engine",
        "tensorrt_flavour": "tensorrt",
        "tensorrt_version": "10.3.0",
        "compute_capability": "8.7",
        "plugin_sha256": None,
        "onnx_sha256": ONNX,
        "precision": "fp16",
        "version_compatible": False,
        "hardware_compatible": False,
        "inputs": (tensor,),
        "outputs": (tensor,),
        "profiles": (),
    }
    return EngineRecord.model_validate(values | changes)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"tensorrt_flavour": "tensorrt-rtx"}, "made by tensorrt-rtx, not tensorrt"),
        ({"onnx_sha256": "b" * 64}, "stale: made from another encoder.onnx"),
        ({"tensorrt_version": "10.3.1"}, "made by tensorrt 10.3.1, here is 10.3.0"),
        ({"compute_capability": "8.6"}, "made for SM 8.6, this GPU is 8.7"),
        ({"compute_capability": "8.6,8.7"}, None),
        ({"compute_capability": "8.0", "hardware_compatible": True}, "made for SM 8.0, this"),
        ({"compute_capability": "8.7", "hardware_compatible": True}, None),
        ({"tensorrt_version": "10.1.0", "version_compatible": True}, None),
        ({"tensorrt_version": "10.4.0", "version_compatible": True}, "here is 10.3.0"),
        ({"tensorrt_version": "9.9.0", "version_compatible": True}, "here is 10.3.0"),
    ],
)
def test_an_engine_runs_only_where_it_was_made_for(
    changes: dict[str, Any], reason: str | None
) -> None:
    found = misfit(record(**changes), JETSON, ONNX)
    assert found is None if reason is None else reason in (found or "")


def test_hardware_compatibility_begins_with_ampere() -> None:
    turing = EngineHost("tensorrt", "10.3.0", "7.5")
    everywhere = record(compute_capability="8.7", hardware_compatible=True)
    assert misfit(everywhere, turing, ONNX) == "made for SM 8.7, this GPU is 7.5"
    assert misfit(everywhere, EngineHost("tensorrt", "10.3.0", "12.0"), ONNX) is None
    thor = EngineHost("tensorrt", "10.3.0", "11.0")
    assert misfit(everywhere, thor, ONNX) == "made for SM 8.7, this GPU is 11.0"


def test_a_key_is_readable_and_changes_with_every_fact() -> None:
    facts = {
        "flavour": "tensorrt-rtx",
        "version": "1.7.1.116",
        "compute_capability": "8.6,12.0",
        "precision": "fp16",
        "onnx_sha256": ONNX,
        "plugin_sha256": None,
        "options": "{}",
    }
    key = EngineIdentity(**facts).key  # type: ignore[arg-type]
    assert key.startswith("tensorrt-rtx-1.7.1.116-sm86+120-fp16-")
    assert record(key=key, file=f"engines/{key}.engine").key == key
    others = {
        "flavour": "tensorrt",
        "version": "1.7.1.117",
        "compute_capability": "8.6",
        "precision": "fp32",
        "onnx_sha256": "b" * 64,
        "plugin_sha256": "c" * 64,
        "options": "{ }",
    }
    keys = {EngineIdentity(**facts | {name: value}).key for name, value in others.items()}  # type: ignore[arg-type]
    assert len(keys | {key}) == len(others) + 1


def test_what_was_measured_is_kept_apart_by_every_fact(own_cache: Path) -> None:
    others = {"flavour": "tensorrt-rtx", "version": "10.3.1", "compute_capability": "8.6"}
    hosts = [replace(JETSON, **{name: value}) for name, value in others.items()]  # type: ignore[arg-type]
    assert len({timing_cache(host) for host in (JETSON, *hosts)}) == 4


def test_versions_are_compared_as_numbers() -> None:
    assert version_of("10.13.3.9.post1") == (10, 13, 3, 9)
    assert version_of("10.3.0") < version_of("10.13.0")


def bundle_with(tmp_path: Path, *records: EngineRecord) -> Bundle:
    bundle = write_bundle(tmp_path / "t.vqedge")
    files: dict[str, Path | bytes] = {
        item.file: b"plan of " + item.key.encode() for item in records
    }
    return rewritten(bundle, files, records)


def test_the_first_fitting_engine_is_taken(tmp_path: Path) -> None:
    sha256 = encoder_sha256(write_bundle(tmp_path / "t.vqedge"))
    foreign = record(onnx_sha256=sha256, compute_capability="9.0")
    mine = record(key="m", file="engines/m.engine", onnx_sha256=sha256)
    bundle = rewritten(
        open_bundle(tmp_path / "t.vqedge"), {foreign.file: b"1", mine.file: b"2"}, (foreign, mine)
    )
    assert fitting_engine(open_bundle(bundle.root), JETSON) == mine


def test_without_one_every_reason_and_the_way_out_are_said(tmp_path: Path) -> None:
    stale = record()
    bundle = bundle_with(tmp_path, stale)
    with pytest.raises(BackendUnavailable) as caught:
        fitting_engine(bundle, JETSON)
    line = str(caught.value)
    assert "engines/k.engine is stale: made from another encoder.onnx" in line
    assert f"vqedge build {bundle.root} --target tensorrt" in line
    with pytest.raises(BackendUnavailable, match="it holds none of tensorrt-rtx"):
        fitting_engine(bundle, EngineHost("tensorrt-rtx", "1.7", "8.7"))


def test_rewriting_keeps_the_rest_and_leaves_out_engines_that_are_gone(tmp_path: Path) -> None:
    bundle = bundle_with(tmp_path, record())
    before = {file.path: file.sha256 for file in bundle.manifest.files}
    after = rewritten(bundle, {"parity.json": b"new\n"}, ())
    files = {file.path: file.sha256 for file in open_bundle(after.root).manifest.files}
    assert set(before) - set(files) == {"engines/k.engine"}
    assert {path for path in files if files[path] != before[path]} == {"parity.json"}
    assert not list(tmp_path.glob(".*")), "nothing is left beside it"


def test_a_failed_rewrite_leaves_the_bundle_as_it_was(tmp_path: Path) -> None:
    bundle = bundle_with(tmp_path, record())
    with pytest.raises(BundleError, match=r"strange\.dat: has no role"):
        rewritten(bundle, {"strange.dat": b"?"})
    assert open_bundle(bundle.root).manifest == bundle.manifest


def test_an_engine_reads_a_question_as_the_encoder_does(tmp_path: Path) -> None:
    plain, asking = tiny_facts(), asking_facts()
    frames, text = asking.encoder.inputs
    narrow = text.model_copy(update={"shape": (1,)})
    files = bundle_with(tmp_path, record()).manifest.files
    wrong = ((asking, (frames,)), (asking, (frames, narrow)), (plain, (frames, text)))
    for facts, inputs in wrong:
        engines = {"engines": (record(inputs=inputs),)}
        with pytest.raises(BundleError, match=r"inputs in engines/k\.engine: text, float32"):
            Manifest.sealed(facts.model_copy(update=engines), files)
    engines = {"engines": (record(inputs=(frames, text)),)}
    assert Manifest.sealed(asking.model_copy(update=engines), files).quantizer.per_question


def test_an_engine_in_a_bundle_has_its_role(tmp_path: Path) -> None:
    with bundle_writer(tmp_path / "t.vqedge") as draft:
        fill_folder(draft.folder)
        (draft.folder / "engines").mkdir()
        (draft.folder / "engines/k.engine").write_bytes(b"plan")
        manifest = draft.finish(tiny_facts(engines=(record(),))).manifest
    assert [file.role for file in manifest.files if file.path == "engines/k.engine"] == ["engine"]
    with pytest.raises(BundleError, match=r"engines/k\.engine is used but not listed"):
        write_bundle(tmp_path / "other.vqedge", facts=tiny_facts(engines=(record(),)))


@pytest.fixture
def built(tmp_path: Path) -> Path:
    path = tmp_path / "built.engine"
    path.write_bytes(b"plan")
    return path


def test_the_cache_gives_back_what_was_put_in(own_cache: Path, built: Path) -> None:
    assert cached_engine("k") is None
    path = cache_engine(built, record())
    assert path.read_bytes() == b"plan"
    assert cached_engine("k") == (path, record())


def test_the_cache_keeps_the_engines_that_were_used_last(
    own_cache: Path, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "_KEPT_ENGINES", 2)
    for age, key in ((9, "a"), (8, "b")):
        os.utime(cache_engine(built, record(key=key)), (0, time.time() - age))
    assert cached_engine("a") is not None, "used now"
    cache_engine(built, record(key="c"))
    kept = sorted(path.name for path in (own_cache / "engines").iterdir())
    assert kept == ["a.engine", "a.json", "c.engine", "c.json"]


def test_an_engine_made_after_the_clock_was_set_back_is_kept(
    own_cache: Path, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "_KEPT_ENGINES", 2)
    for key in ("a", "b"):
        os.utime(cache_engine(built, record(key=key)), (0, time.time() + 1e6))
    assert cache_engine(built, record(key="c")).is_file()
    assert len(list((own_cache / "engines").iterdir())) == 4


@pytest.mark.parametrize("damage", ["engine", "note", "other key"])
def test_a_damaged_cache_gives_nothing(own_cache: Path, built: Path, damage: str) -> None:
    path = cache_engine(built, record())
    note = path.with_suffix(".json")
    if damage == "engine":
        path.write_bytes(b"plaN")
    elif damage == "note":
        note.write_text(note.read_text()[:-20])
    else:
        note.write_text(note.read_text().replace('"key": "k"', '"key": "l"'))
    assert cached_engine("k") is None


def test_a_plugin_library_is_found_by_its_hash_only(own_cache: Path, tmp_path: Path) -> None:
    library = tmp_path / "plugin.so"
    library.write_bytes(b"elf")
    sha256 = file_sha256(library)
    with pytest.raises(BackendUnavailable, match="missing or altered; copy it from the machine"):
        cached_plugin(sha256)
    plugin_folder().mkdir(parents=True)
    kept = plugin_folder() / f"{sha256}.so"
    kept.write_bytes(b"elf")
    assert cached_plugin(sha256) == kept
    kept.write_bytes(b"evil")
    with pytest.raises(BackendUnavailable, match="missing or altered"):
        cached_plugin(sha256)


def test_a_cache_that_cannot_be_written_is_the_users_to_mend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "built").write_text("engine")
    for place in ("file", "file/below"):
        monkeypatch.setenv("VQEDGE_CACHE", str(tmp_path / place))
        with pytest.raises(OSError, match="file") as caught:
            cache_engine(tmp_path / "built", record())
        assert disk_fault(caught.value) is not None
