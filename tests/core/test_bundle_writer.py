"""Writing a bundle: whole or not at all, over nothing that is not a bundle."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from tiny_bundle import FILES, fill_folder, tiny_facts, tiny_quantizer, write_bundle

import vqedge.bundle.writer as writer_module
from vqedge.bundle import bundle_writer, open_bundle, rewritten
from vqedge.bundle.manifest import VariantRecord
from vqedge.errors import BundleError

ROOT = Path(__file__).parents[2]


def _leftovers(out: Path) -> list[Path]:
    return list(out.parent.glob(".*"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "tiny.vqedge").root


def test_a_failed_block_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "tiny.vqedge"
    with pytest.raises(KeyError), bundle_writer(out) as draft:
        fill_folder(draft.folder)
        raise KeyError
    with pytest.raises(RuntimeError, match="call finish"), bundle_writer(out):
        pass
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told_in_one_line(tmp_path: Path) -> None:
    out = tmp_path / "tiny.vqedge"
    words = r"llm\.gguf: No space left on device; free some space"
    with pytest.raises(BundleError, match=words), bundle_writer(out) as draft:
        raise OSError(errno.ENOSPC, "No space left on device", str(draft.folder / "llm.gguf"))
    assert not list(tmp_path.iterdir())


def test_a_filesystem_without_locks_is_told_and_left_clean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("vqedge.files.fcntl.flock", flock)
    words = r"No locks available; make it on a local disk and copy it there"
    with pytest.raises(BundleError, match=words), bundle_writer(tmp_path / "tiny.vqedge"):
        pytest.fail("it was written")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("exchanges", [True, False])
def test_what_a_user_wrote_beside_the_files_stays(
    root: Path, monkeypatch: pytest.MonkeyPatch, exchanges: bool
) -> None:
    if not exchanges:
        monkeypatch.setattr(writer_module, "_exchange", lambda *_: False)
    (root / "NOTES.md").write_text("mine")
    (root / "LICENSES").mkdir(exist_ok=True)
    (root / "LICENSES/mine.txt").write_text("too")
    rewritten(open_bundle(root), {"parity.json": b"{}"})
    write_bundle(root, overwrite=True)
    assert (root / "NOTES.md").read_text() == "mine"
    assert (root / "LICENSES/mine.txt").read_text() == "too"
    open_bundle(root)


def test_a_bundle_that_changed_since_it_was_opened_is_not_sealed(root: Path) -> None:
    opened = open_bundle(root)
    rewritten(opened, {"parity.json": b"{}"})
    with pytest.raises(BundleError, match="was changed meanwhile"):
        rewritten(opened, {"parity.json": b"[]"})
    again = open_bundle(root)
    (root / "llm.gguf").write_bytes(b"damaged" * 3)
    with pytest.raises(BundleError):
        rewritten(again, {"parity.json": b"[]"})


def test_of_two_that_change_a_bundle_at_once_the_second_is_refused(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, move = open_bundle(root), writer_module._move_into_place
    refused = list[str]()

    def second() -> None:
        try:
            rewritten(opened, {"parity.json": b"[]"})
        except BundleError as error:
            refused.append(str(error))

    other = threading.Thread(target=second)

    def meanwhile(folder: Path, out: Path) -> None:
        """The other one begins before this one's move, and is at its own while this one waits."""
        if not other.ident:
            other.start()
            other.join(0.5)
            assert other.is_alive(), "it waits for its turn"
        move(folder, out)

    monkeypatch.setattr(writer_module, "_move_into_place", meanwhile)
    rewritten(opened, {"parity.json": b"{}"})
    other.join()
    assert open_bundle(root).path_of("parity").read_bytes() == b"{}"
    assert len(refused) == 1 and "was changed meanwhile; run the command again" in refused[0]
    assert not _leftovers(root)


def test_what_a_user_wrote_is_in_the_new_bundle_before_it_has_its_place(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill right after would leave the old folder to be removed."""
    (root / "NOTES.md").write_text("mine")
    move, there = writer_module._move_into_place, list[bool]()
    monkeypatch.setattr(
        writer_module,
        "_move_into_place",
        lambda folder, out: (there.append((folder / "NOTES.md").exists()), move(folder, out)),
    )
    rewritten(open_bundle(root), {"parity.json": b"{}"})
    assert there == [True] and (root / "NOTES.md").read_text() == "mine"


def test_a_draft_is_finished_once(tmp_path: Path) -> None:
    with bundle_writer(tmp_path / "tiny.vqedge") as draft:
        fill_folder(draft.folder)
        draft.finish(tiny_facts())
        with pytest.raises(RuntimeError, match="before"):
            draft.finish(tiny_facts())
    open_bundle(tmp_path / "tiny.vqedge")


@pytest.mark.parametrize(
    "name", ["notes.json", "weights.pt", "LICENSES/a/b.txt", "é.onnx", "encoder.onnx.d/x"]
)
def test_a_file_without_a_place_fails_the_export(tmp_path: Path, name: str) -> None:
    out = tmp_path / "tiny.vqedge"
    with pytest.raises(BundleError, match=f"tiny.vqedge: {name}"), bundle_writer(out) as draft:
        fill_folder(draft.folder)
        (draft.folder / name).parent.mkdir(exist_ok=True)
        (draft.folder / name).write_bytes(b"")
        draft.finish(tiny_facts())
    assert not out.exists()


def test_a_named_file_that_is_not_there_fails_the_export(tmp_path: Path) -> None:
    out = tmp_path / "tiny.vqedge"
    with pytest.raises(BundleError, match=r"llm\.gguf is used"), bundle_writer(out) as draft:
        for name in ("encoder.onnx", "bridge.onnx"):
            (draft.folder / name).write_bytes(b"x")
        draft.finish(tiny_facts())
    assert not list(tmp_path.iterdir())


def test_a_variant_that_is_not_there_fails_the_export(tmp_path: Path) -> None:
    variants = (VariantRecord(file="encoder.int8.onnx", precision="int8"),)
    encoder = tiny_facts().encoder.model_copy(update={"variants": variants})
    with pytest.raises(BundleError, match=r"encoder\.int8\.onnx is used but not listed"):
        write_bundle(tmp_path / "tiny.vqedge", facts=tiny_facts(encoder=encoder))


def test_a_role_of_several_files_names_none(tmp_path: Path) -> None:
    with bundle_writer(tmp_path / "tiny.vqedge") as draft:
        fill_folder(draft.folder)
        (draft.folder / "LICENSES/second.txt").write_bytes(b"MIT\n")
        bundle = draft.finish(tiny_facts())
    with pytest.raises(BundleError, match="licence: several files have this role; it lists LIC"):
        bundle.path_of("licence")


def test_all_is_on_the_disk_before_the_bundle_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, flushed = tmp_path / "tiny.vqedge", list[tuple[str, bool]]()
    monkeypatch.setattr(
        writer_module, "flush", lambda path: flushed.append((path.name, out.exists()))
    )
    write_bundle(out)
    names = {Path(file).name for file in FILES} | {"manifest.json", "LICENSES"}
    assert names <= {name for name, named in flushed if not named}
    assert flushed[-1] == (tmp_path.name, True), "the name itself"


def test_external_tensors_of_the_encoder_have_a_role(tmp_path: Path) -> None:
    with bundle_writer(tmp_path / "tiny.vqedge") as draft:
        fill_folder(draft.folder)
        (draft.folder / "encoder.onnx.data").write_bytes(b"x")
        draft.finish(tiny_facts())
    assert open_bundle(tmp_path / "tiny.vqedge").path_of("encoder-data").exists()


def test_an_existing_bundle_is_replaced_only_if_asked(root: Path) -> None:
    with pytest.raises(BundleError, match=r"exists already; .* or give --overwrite"):
        write_bundle(root)
    (root / "llm.gguf").write_bytes(b"damaged")  # a broken bundle may be replaced too
    quantizer = tiny_quantizer(codes=8, default_budget=8)
    write_bundle(root, overwrite=True, facts=tiny_facts(quantizer=quantizer))
    assert open_bundle(root).manifest.quantizer.codes == 8
    assert not _leftovers(root)


def test_anything_else_is_never_replaced(root: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "app").mkdir()
    (tmp_path / "app/manifest.json").write_text('{"manifest_version": 3, "files": []}')
    for name in ("folder", "file", "app"):
        with pytest.raises(BundleError, match="is not a bundle"):
            write_bundle(tmp_path / name, overwrite=True)
    (root / "my-results.csv").write_text("mine")
    with pytest.raises(BundleError, match=r"holds my-results\.csv"):
        write_bundle(root, overwrite=True)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_link_to_a_bundle_stays(root: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.vqedge"
    link.symlink_to(root)
    with pytest.raises(BundleError, match=r"link\.vqedge: is a link; give the folder that"):
        write_bundle(link, overwrite=True)
    made = rewritten(open_bundle(link), {"parity.json": b'{"new": 1}\n'})
    assert link.is_symlink() and made.root == link
    assert open_bundle(root).path_of("parity").read_bytes() == b'{"new": 1}\n'


def test_without_an_exchange_the_old_bundle_is_moved_aside(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "_exchange", lambda folder, out: False)
    write_bundle(root, overwrite=True)
    open_bundle(root)
    rename = os.rename

    def fail_second(source: Path, target: Path) -> None:
        if source.name == "bundle":
            raise PermissionError(13, "held open")
        rename(source, target)

    monkeypatch.setattr("vqedge.bundle.writer.os.rename", fail_second)
    with pytest.raises(BundleError, match="held open"):
        write_bundle(root, overwrite=True)
    open_bundle(root)
    assert not _leftovers(root)


_CHILD = """
import os, sys
from pathlib import Path
sys.path.insert(0, "tests/core")
import vqedge.bundle.writer as writer
from tiny_bundle import fill_folder, tiny_facts
def stop(*args):
    print("stopped", flush=True)
    sys.stdin.read()
if sys.argv[2] == "moving":
    writer._exchange = lambda folder, out: False
    rename = os.rename
    writer.os.rename = lambda a, b: stop() if Path(a).name == "bundle" else rename(a, b)
with writer.bundle_writer(Path(sys.argv[1]), overwrite=True) as draft:
    fill_folder(draft.folder)
    if sys.argv[2] == "filling":
        stop()
    draft.finish(tiny_facts())
"""


def _stopped_child(out: Path, where: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _CHILD, str(out), where]
    pipe = subprocess.PIPE
    child = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "stopped\n"
    return child


def _kill(child: subprocess.Popen[str]) -> None:
    with child:
        child.send_signal(signal.SIGKILL)


def test_a_killed_writer_leaves_nothing_at_the_target(tmp_path: Path) -> None:
    out = tmp_path / "tiny.vqedge"
    child = _stopped_child(out, "filling")
    assert not out.exists()
    write_bundle(tmp_path / "other.vqedge")
    write_bundle(out)
    assert len(_leftovers(out)) == 1, "the workspace of a living writer was removed"
    _kill(child)
    (tmp_path / ".tiny.vqedge.12345678.partial").mkdir()
    write_bundle(out, overwrite=True)
    assert not _leftovers(out)


def test_a_writer_killed_between_two_renames_is_undone(root: Path) -> None:
    _kill(_stopped_child(root, "moving"))
    assert not root.exists()
    (old,) = root.parent.glob(".tiny.vqedge.*.partial/old")
    with pytest.raises(BundleError, match=rf"a killed command left it as {old}: move it back"):
        open_bundle(root)
    with pytest.raises(BundleError, match="no such folder; give the path"):
        open_bundle(root.with_name("other.vqedge"))
    with pytest.raises(KeyError), bundle_writer(root, overwrite=True):
        open_bundle(root)
        raise KeyError
    assert not _leftovers(root)
