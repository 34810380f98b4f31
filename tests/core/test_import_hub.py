"""`vqedge import OWNER/NAME`, with a stand-in for the hub: nothing leaves this machine."""

from __future__ import annotations

import errno
import json
import sys
from pathlib import Path, PurePath

import pytest
from fake_hub import FakeHub

from vqedge.base.fetch import fetch_model
from vqedge.base.hub import download_model
from vqedge.commands import import_
from vqedge.errors import BackendUnavailable, CheckpointError, FetchError
from vqedge.pickles import conversion_line

LISTED = (
    "README.md",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors",
    "model.safetensors.index.json",
    "onnx/model.safetensors",
    "processor_config.json",
    "pytorch_model.bin",
    "tokenizer.json",
    "tokenizer_config.json",
    "training_args.bin",
    "vocab.json",
)
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
LEFT = {
    "generation_config.json",
    "model.safetensors",
    "onnx/model.safetensors",
    "pytorch_model.bin",
    "training_args.bin",
}
TAKEN = tuple(name for name in LISTED if name not in LEFT)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub(LISTED)
    index = {"weight_map": {"a": SHARDS[0], "b": SHARDS[1], "c": "onnx/model.safetensors"}}
    fake.contents["model.safetensors.index.json"] = json.dumps(index)
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    return fake


def _ignore(what: str, done_bytes: int, total_bytes: int) -> None:
    """No progress wanted."""


def test_what_an_import_reads_is_downloaded_and_no_pickle(hub: FakeHub, tmp_path: Path) -> None:
    commit = download_model("owner/model", "v1", tmp_path / "model", _ignore)
    assert commit == "commit-of-v1"
    found = {path.name for path in (tmp_path / "model").iterdir()}
    assert found == {*TAKEN, "commit.txt"}
    assert {(repo, revision) for repo, _, revision in hub.calls} == {
        ("owner/model", "commit-of-v1")
    }


def test_a_commit_is_downloaded_once(hub: FakeHub, tmp_path: Path) -> None:
    for _ in range(2):
        assert download_model("owner/model", "v1", tmp_path / "model", _ignore) == "commit-of-v1"
    asked = len(TAKEN) + 1  # the index first, which the library then finds in its folder
    assert len(hub.calls) == asked
    download_model("owner/model", "v2", tmp_path / "model", _ignore)
    assert len(hub.calls) == 2 * asked


def test_of_weights_only_those_that_an_import_reads_are_downloaded(
    hub: FakeHub, tmp_path: Path
) -> None:
    hub.listed = ("config.json", "model.safetensors", "open_clip_model.safetensors")
    download_model("owner/model", "v1", tmp_path / "model", _ignore)
    assert [name for _, name, _ in hub.calls] == ["config.json", "model.safetensors"]
    hub.listed = ("config.json", "open_clip_model.safetensors")
    with pytest.raises(FetchError, match=r"no model\.safetensors, only .*open_clip_model\.safet"):
        download_model("owner/model", "v2", tmp_path / "model", _ignore)
    hub.listed, hub.contents = LISTED, {}  # an index that is no JSON: the import says so
    download_model("owner/model", "v3", tmp_path / "model", _ignore)
    assert (tmp_path / "model" / SHARDS[1]).is_file()


def test_an_index_that_cannot_be_had_is_told(hub: FakeHub, tmp_path: Path) -> None:
    def refused(*_: object, **__: object) -> str:
        raise ConnectionError("403")

    hub.hf_hub_download = refused  # type: ignore[method-assign]
    with pytest.raises(FetchError, match=r"owner/model: cannot download .*: 403; .* --local-dir"):
        download_model("owner/model", "v1", tmp_path / "model", _ignore)


def test_a_commit_that_lies_there_needs_no_network(hub: FakeHub, tmp_path: Path) -> None:
    commit = download_model("owner/model", "v1", tmp_path / "model", _ignore)
    hub.fault = ConnectionError("offline")
    assert download_model("owner/model", commit, tmp_path / "model", _ignore) == commit
    with pytest.raises(FetchError, match=f"offline; .* --revision {commit}"):
        download_model("owner/model", "main", tmp_path / "model", _ignore)


def test_a_full_disk_is_told_in_one_line(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv("VQEDGE_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "hf_hub_download", full)
    with pytest.raises(FetchError, match="owner/model: no space left in"):
        fetch_model("owner/model", "main", _ignore)


def test_files_of_another_commit_do_not_stay(hub: FakeHub, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model-00003-of-00003.safetensors").write_text("old")
    download_model("owner/model", "main", folder, _ignore)
    assert not (folder / "model-00003-of-00003.safetensors").exists()


def test_a_kill_while_another_commit_is_removed_leaves_nothing_that_counts(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    old = download_model("owner/model", "v1", folder, _ignore)

    def killed(path: Path, **_: object) -> None:
        (path / TAKEN[-1]).unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("vqedge.base.hub.shutil.rmtree", killed)
        download_model("owner/model", "v2", folder, _ignore)
    assert download_model("owner/model", old, folder, _ignore) == old
    assert {path.name for path in folder.iterdir()} == {*TAKEN, "commit.txt"}


def test_a_repository_of_pickles(hub: FakeHub, tmp_path: Path) -> None:
    hub.listed = ("config.json", "pytorch_model.bin")
    with pytest.raises(FetchError, match="owner/model: has no safetensors") as caught:
        download_model("owner/model", "main", tmp_path / "model", _ignore)
    assert hub.calls == []
    fetched = "hf download owner/model --revision commit-of-main --local-dir model && "
    paths = [PurePath("model/pytorch_model.bin")]
    line = conversion_line(paths, PurePath("model/model.safetensors"))
    assert str(caught.value).endswith(fetched + line)
    hub.listed = ("config.json", "model.safetensors.index.json", "pytorch_model.bin")
    with pytest.raises(FetchError, match="owner/model: has no safetensors"):
        download_model("owner/model", "main", tmp_path / "model", _ignore)
    hub.listed = ("config.json", "Model.pickle")
    with pytest.raises(FetchError, match=r"has no safetensors, and Model\.pickle is a pickle"):
        download_model("owner/model", "main", tmp_path / "model", _ignore)
    hub.listed = ("config.json", "flax_model.msgpack")
    with pytest.raises(FetchError, match="has no safetensors, nor other weights that are known"):
        download_model("owner/model", "main", tmp_path / "model", _ignore)


def test_a_repository_that_is_not_there(hub: FakeHub, tmp_path: Path) -> None:
    hub.fault = ConnectionError("404\nmore")
    with pytest.raises(FetchError, match=r"owner/gone: cannot download .*: 404; check"):
        download_model("owner/gone", "main", tmp_path / "model", _ignore)


def test_a_network_that_is_down_is_told_by_what_it_said(hub: FakeHub, tmp_path: Path) -> None:
    """Libraries wrap it in errors that show each other, hundreds of letters long."""
    refused = OSError(-3, "Temporary failure in name resolution")
    middle, hub.fault = ConnectionError("[host] cannot be resolved"), ConnectionError("Pool(1, 2)")
    middle.__cause__, hub.fault.__context__ = refused, middle
    with pytest.raises(FetchError) as caught:
        download_model("owner/gone", "main", tmp_path / "model", _ignore)
    assert str(caught.value) == (
        "owner/gone: cannot download from the Hugging Face hub: Temporary failure in name "
        "resolution; check the network and your access ('hf auth login'), or download it "
        "elsewhere: hf download owner/gone --local-dir FOLDER, then import FOLDER"
    )


def test_no_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(BackendUnavailable, match="pip install huggingface_hub"):
        download_model("owner/model", "main", tmp_path / "model", _ignore)


def test_a_source_is_a_folder_or_a_repository(
    hub: FakeHub, own_cache: Path, tmp_path: Path
) -> None:
    assert import_._folder_of(str(tmp_path), "main") == (tmp_path, None, None)
    folder, name, commit = import_._folder_of("owner/model", "main")
    assert (folder.name, name, commit) == ("owner--model", "owner/model", "commit-of-main")
    assert (folder / "config.json").is_file()
    for wrong in ("nowhere", "a/b/c", "../owner", "https://hub/owner/model"):
        with pytest.raises(CheckpointError, match="no such folder, and not a repository"):
            import_._folder_of(wrong, "main")
