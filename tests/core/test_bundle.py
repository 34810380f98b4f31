"""Reading a bundle: refused in one line when anything about it is off."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_bundle import FILES, tiny_facts, tiny_quantizer, write_bundle

from vqedge.bundle import FileRecord, Manifest, TensorRecord, open_bundle
from vqedge.bundle.manifest import manifest_bytes, manifest_from_bytes
from vqedge.errors import BundleError, printable
from vqedge.sampling import DEFAULT_RULE, FrameRule

ROOT = Path(__file__).parents[2]
SCHEMA = ROOT / "tests/golden/manifest.schema.json"


def _edit(root: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest as an attacker would: canonical again, with a fitting digest."""
    raw = json.loads((root / "manifest.json").read_bytes())
    change(raw)
    _seal(root, raw)


def _seal(root: Path, raw: dict[str, Any]) -> None:
    unsealed = {key: value for key, value in raw.items() if key != "digest"}
    raw["digest"] = hashlib.sha256(_canonical(unsealed)).hexdigest()
    (root / "manifest.json").write_bytes(_canonical(raw))


def _canonical(raw: dict[str, Any]) -> bytes:
    text = json.dumps(raw, indent=2, sort_keys=True, ensure_ascii=False)
    return (text + "\n").encode("utf-8", "surrogatepass")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "tiny.vqedge").root


def _refused(root: Path, match: str) -> None:
    with pytest.raises(BundleError, match=match) as caught:
        open_bundle(root)
    assert str(caught.value).startswith(f"{printable(str(root))}: ")
    assert "\n" not in str(caught.value)
    assert ";" in str(caught.value), "names no next step"


# --- what is written is what is read


def test_a_written_bundle_opens(root: Path) -> None:
    bundle = open_bundle(root)
    assert bundle.path_of("encoder") == bundle.path_of("encoder.onnx") == root / "encoder.onnx"
    assert bundle.path_of("llm").read_bytes() == FILES["llm.gguf"]
    assert [file.path for file in bundle.manifest.files] == sorted(FILES)
    assert bundle.manifest.llm.system_prompt.endswith("vidéo.")
    for unknown in ("engine", "manifest.json", "../x"):
        with pytest.raises(BundleError, match="not listed"):
            bundle.path_of(unknown)


def test_two_writes_are_equal_byte_for_byte(root: Path, tmp_path: Path) -> None:
    other = write_bundle(tmp_path / "elsewhere/other.vqedge").root
    for name in ("manifest.json", *FILES):
        assert (root / name).read_bytes() == (other / name).read_bytes()


def test_a_manifest_that_says_no_rule_means_the_middle_of_equal_parts(root: Path) -> None:
    plain = open_bundle(root).manifest
    assert plain.encoder.rule == DEFAULT_RULE
    assert b"sampling" not in manifest_bytes(plain), "bundles from before it keep their digest"
    rule = FrameRule("ends", "stretch-bicubic")
    encoder = plain.encoder.model_copy(update=rule._asdict())
    other = Manifest.sealed(tiny_facts(encoder=encoder), plain.files)
    assert manifest_from_bytes(manifest_bytes(other)).encoder.rule == rule


def test_the_schema_is_pinned(request: pytest.FixtureRequest) -> None:
    schema = Manifest.model_json_schema(mode="serialization")
    text = json.dumps(schema, indent=2, sort_keys=True) + "\n"
    if request.config.getoption("--update-golden", default=False):
        SCHEMA.write_text(text, encoding="utf-8")
    assert SCHEMA.read_text(encoding="utf-8") == text, "changed: run scripts/test --update-golden"


def test_the_schema_requires_what_a_reader_does(root: Path) -> None:
    schema = json.loads(SCHEMA.read_bytes())
    written = json.loads((root / "manifest.json").read_bytes())
    assert set(schema["required"]) == set(written)
    for part in ("encoder", "bridge", "quantizer", "llm", "provenance"):
        record = schema["$defs"][f"{part.capitalize()}Record"]
        assert set(record["required"]) == set(written[part]), part
        assert record["additionalProperties"] is False


_WORDS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30)
_COUNTS = st.integers(1, 1 << 31)
_SHAPES = st.lists(_COUNTS | _WORDS, max_size=8).map(tuple)
_HEX = st.binary(min_size=32, max_size=32).map(bytes.hex)


@st.composite
def _manifests(draw: st.DrawFn) -> Manifest:
    facts = tiny_facts()
    tensor = TensorRecord(name=draw(_WORDS), dtype="float16", shape=draw(_SHAPES))
    encoder = facts.encoder.model_copy(update={"outputs": (tensor,), "block": draw(_COUNTS)})
    width = draw(_COUNTS)
    llm = facts.llm.model_copy(update={"system_prompt": draw(_WORDS), "width": width})
    rows = TensorRecord(name="tokens", dtype="float32", shape=(32, width))
    bridge = facts.bridge.model_copy(update={"outputs": (rows,)})
    error = st.none() | st.floats(0, 1, exclude_min=True, exclude_max=True)
    tables = {"levels": draw(st.integers(1, 64)), "entries": draw(st.integers(2, 65536))}
    tables["sha256"] = draw(_HEX)
    learned = {"kind": "codebook", "codebook": tables} if draw(st.booleans()) else {}
    quantizer = tiny_quantizer(adaptive_error=draw(error), **learned)
    tools = draw(st.dictionaries(_WORDS, _WORDS, max_size=4))
    provenance = facts.provenance.model_copy(update={"tools": tools})
    files = tuple(
        FileRecord(
            path=path, size_bytes=draw(st.integers(0, 1 << 33)), sha256=draw(_HEX), role=role
        )
        for path in sorted(FILES)
        if (role := facts.role_of(path))
    )
    parts = {"encoder": encoder, "bridge": bridge, "quantizer": quantizer, "llm": llm}
    return Manifest.sealed(tiny_facts(**parts, provenance=provenance), files)


@given(_manifests())
@settings(max_examples=60)
def test_a_manifest_survives_its_file(manifest: Manifest) -> None:
    assert manifest_from_bytes(manifest_bytes(manifest)) == manifest


# --- what is refused


@pytest.fixture(scope="module")
def shared_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle") / "tiny.vqedge").root


def _damaged(data: bytes, how: str, draw: Callable[..., Any]) -> bytes | None:
    at: int = draw(st.integers(0, len(data) - 1))
    if how == "flip":
        return data[:at] + bytes([data[at] ^ draw(st.integers(1, 255))]) + data[at + 1 :]
    if how == "insert":
        return b"".join([data[:at], draw(st.binary(min_size=1, max_size=4)), data[at:]])
    return data[:at] if how == "truncate" else None


@given(st.data())
@settings(max_examples=300)
def test_any_damage_to_any_file_is_a_bundle_error(shared_root: Path, data: st.DataObject) -> None:
    path = shared_root / data.draw(st.sampled_from(["manifest.json", *FILES]))
    how = data.draw(st.sampled_from(["flip", "flip", "insert", "truncate", "delete"]))
    intact = path.read_bytes()
    damaged = _damaged(intact, how, data.draw)
    try:
        path.unlink() if damaged is None else path.write_bytes(damaged)
        with pytest.raises(BundleError):
            open_bundle(shared_root)
    finally:
        path.write_bytes(intact)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


@given(st.data())
@settings(max_examples=200)
def test_any_value_anywhere_in_the_manifest(shared_root: Path, data: st.DataObject) -> None:
    path = shared_root / "manifest.json"
    intact = path.read_bytes()
    raw = json.loads(intact)
    place: Any = raw
    while True:
        key = data.draw(
            st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place)))
        )
        if not place[key] or not isinstance(place[key], dict | list) or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = data.draw(_JSON)
    try:
        _seal(shared_root, raw)
        open_bundle(shared_root, verify=False)
    except BundleError:
        pass
    finally:
        path.write_bytes(intact)


def test_a_missing_folder_and_a_file(tmp_path: Path) -> None:
    _refused(tmp_path / "none.vqedge", "no such folder")
    (tmp_path / "file.vqedge").write_bytes(b"PK")
    _refused(tmp_path / "file.vqedge", "not a folder")
    (tmp_path / "empty").mkdir()
    _refused(tmp_path / "empty", "no manifest.json")
    _refused(Path("a\0b"), "no such folder")


MANIFESTS = {
    "over 1048576 bytes": b" " * ((1 << 20) + 1),
    "nested too deeply": b"[" * 100_000,
    "not JSON": b'{"schema_version": 3,}',
    "not JSON: 'utf-8'": b'{"\xff": 1}',
    "a key is repeated": b'{"schema_version": 3, "schema_version": 3}',
    "not a vqedge manifest": b"[]",
    "schema version 2; this vqedge reads schema 3; upgrade vqedge or": b'{"schema_version": 2}',
    "schema version 4; this": b'{"schema_version": 4}',
    "schema version 3.0;": b'{"schema_version": 3.0}',
    "schema version True;": b'{"schema_version": true}',
    "schema version of type str;": b'{"schema_version": "3"}',
    "Field required": b'{"schema_version": 3}',
}


@pytest.mark.parametrize("problem", MANIFESTS)
def test_a_manifest_that_cannot_be_read(root: Path, problem: str) -> None:
    (root / "manifest.json").write_bytes(MANIFESTS[problem])
    _refused(root, problem)


def test_a_manifest_spelled_otherwise_or_altered(root: Path) -> None:
    text = (root / "manifest.json").read_text(encoding="utf-8")
    (root / "manifest.json").write_text(text.replace("  ", " "), encoding="utf-8")
    _refused(root, "not as vqedge writes it")
    (root / "manifest.json").write_text(text.replace("49152", "49153"), encoding="utf-8")
    _refused(root, "the digest does not fit")


BAD_PATHS = [
    "/etc/passwd",
    "../llm.gguf",
    "a/../b.onnx",
    "a\\b.onnx",
    "C:/b.onnx",
    "C:b.onnx",
    "./b.onnx",
    "a//b.onnx",
    "a/",
    "",
    "é.onnx",
    "a\n.onnx",
    "b.onnx\n",
    ".hidden",
    "a./b",
    "a/b/c/d/e/f",
    "x" * 201,
    "weights.pt",
    "LICENSES/x.PKL",
    "manifest.json",
]


@pytest.mark.parametrize("path", BAD_PATHS)
def test_a_path_that_could_lead_elsewhere(root: Path, path: str) -> None:
    def add(raw: dict[str, Any]) -> None:
        raw["files"].insert(0, raw["files"][0] | {"path": path})

    _edit(root, add)
    _refused(root, r"files\.0\.path: ")


def _files(change: Callable[[list[dict[str, Any]]], Any]) -> Callable[[dict[str, Any]], None]:
    return lambda raw: change(raw["files"]) and None


EDITS: dict[str, Callable[[dict[str, Any]], None]] = {
    "lists a path twice": _files(lambda files: files.insert(1, files[1])),
    "upper and lower case": _files(lambda files: files.insert(1, files[1] | {"path": "LLM.gguf"})),
    "not sorted": _files(lambda files: files.reverse()),
    "llm.gguf is used but not listed": _files(lambda files: files.pop(3)),
    "bridge.onnx is used but not listed": _files(lambda files: files.pop(1)),
    "wrong role 'engine'": _files(lambda files: files[0].update(role="engine")),
    "larger than 32 GiB together": _files(
        lambda files: [f.update(size_bytes=9 << 30) for f in files]
    ),
    "less than or equal to 17179869184": _files(lambda files: files[0].update(size_bytes=17 << 30)),
    "files: Tuple should have at most 256": _files(lambda files: files.extend(files * 100)),
    "Extra inputs": lambda raw: raw.update(extra=1),
    "exceeds codes": lambda raw: raw["quantizer"].update(default_budget=33),
    "kind 'codebook' does not go with codebook None": lambda raw: raw["quantizer"].update(
        kind="codebook"
    ),
    "kind 'kmeans' does not go with codebook levels=4 entries=1024 sha256='00": lambda raw: raw[
        "quantizer"
    ].update(codebook={"levels": 4, "entries": 1024, "sha256": "00" * 32}),
    "quantizer.adaptive_error: Input should be less than 1": lambda raw: raw["quantizer"].update(
        adaptive_error=1.0
    ),
    "llm.vocab_size: Input should be a valid integer": lambda raw: raw["llm"].update(
        vocab_size="9"
    ),
}


@pytest.mark.parametrize("problem", EDITS)
def test_a_manifest_that_contradicts_itself(root: Path, problem: str) -> None:
    _edit(root, EDITS[problem])
    _refused(root, problem)


def test_a_link_anywhere(root: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (root / "more").symlink_to(tmp_path / "outside")
    _refused(root, "more: a link")
    (root / "more").unlink()
    (root / "LICENSES/readme.md").symlink_to(tmp_path / "nowhere")
    _refused(root, "readme.md: a link")
    (root / "LICENSES/readme.md").unlink()
    shutil.move(root / "llm.gguf", tmp_path / "llm.gguf")
    (root / "llm.gguf").symlink_to(tmp_path / "llm.gguf")
    _refused(root, "llm.gguf: a link")


def test_a_manifest_that_is_a_link(root: Path, tmp_path: Path) -> None:
    shutil.move(root / "manifest.json", tmp_path / "manifest.json")
    (root / "manifest.json").symlink_to(tmp_path / "manifest.json")
    _refused(root, "no manifest.json")


def test_the_bundle_itself_may_be_reached_through_a_link(root: Path, tmp_path: Path) -> None:
    (tmp_path / "current.vqedge").symlink_to(root)
    open_bundle(tmp_path / "current.vqedge")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes on disk")
def test_a_pipe(root: Path) -> None:
    os.mkfifo(root / "pipe.md")
    _refused(root, "not a regular file")


@pytest.mark.parametrize("name", ["x.pt", "LICENSES/x.pkl", "x.BIN", "x.ckpt"])
def test_a_pickle_that_nobody_listed(root: Path, name: str) -> None:
    (root / name).write_bytes(b"")
    _refused(root, "may hold a pickle")


@pytest.mark.parametrize("name", ["x.engine", "encoder.onnx.data", "notes.json", "a\nb", "\udcff"])
def test_an_unlisted_file(root: Path, name: str) -> None:
    (root / name).write_bytes(b"")
    _refused(root, "not listed in the manifest")


def test_texts_and_desktop_litter_are_left_alone(root: Path) -> None:
    for name in ("README.md", ".DS_Store", "LICENSES/Thumbs.db"):
        (root / name).write_bytes(b"")
    open_bundle(root)


def test_more_entries_than_allowed(root: Path) -> None:
    for index in range(1025):
        (root / f"{index}.txt").touch()
    _refused(root, "too many files")


def test_folders_too_deep(root: Path) -> None:
    (root / "/".join("abcdef")).mkdir(parents=True)
    _refused(root, "too many files or folders")


def test_verify_false_skips_only_the_hashes(root: Path) -> None:
    (root / "llm.gguf").write_bytes(b"gguf" * 20)
    open_bundle(root, verify=False)
    with pytest.raises(BundleError, match=r"llm\.gguf: altered"):
        open_bundle(root)
    (root / "llm.gguf").write_bytes(b"gguf")
    with pytest.raises(BundleError, match="has 4 bytes, the manifest says 80"):
        open_bundle(root, verify=False)


def test_the_runtime_can_import_it_with_pydantic_alone() -> None:
    code = "import sys, vqedge.bundle; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    heavy = {"numpy", "torch", "onnx", "onnxruntime", "llama_cpp", "yaml", "huggingface_hub"}
    assert done.returncode == 0, done.stderr
    assert not heavy & set(done.stdout.split())
