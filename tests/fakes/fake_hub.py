"""Stands in for the huggingface_hub module: nothing leaves this machine."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace


class FakeHub:
    """One repository, the same under every name; each file holds its own name or its `contents`.

    Attributes:
        listed: the files that it lists.
        fault: raised instead of an answer.
        contents: of files that hold something else, by name.
        calls: repository, file and commit of every download.
    """

    def __init__(self, listed: tuple[str, ...] = ()) -> None:
        self.listed = listed
        self.fault: Exception | None = None
        self.contents: dict[str, str] = {}
        self.calls: list[tuple[str, str, str]] = []

    def HfApi(self) -> FakeHub:
        return self

    def model_info(self, repo_id: str, revision: str) -> SimpleNamespace:
        if self.fault:
            raise self.fault
        commit = revision if "commit" in revision else f"commit-of-{revision}"
        files = [SimpleNamespace(rfilename=name) for name in self.listed]
        return SimpleNamespace(sha=commit, siblings=files)

    def hf_hub_download(self, repo_id: str, name: str, revision: str, local_dir: Path) -> str:
        self.calls.append((repo_id, name, revision))
        local_dir.mkdir(parents=True, exist_ok=True)
        (local_dir / name).write_text(self.contents.get(name, name))
        return str(local_dir / name)
