"""Files of a Hugging Face repository, for users who have access to it."""

from __future__ import annotations

import errno
import json
import os
import shlex
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from types import ModuleType

from vqedge.base.sources import HubSource, Progress
from vqedge.errors import BackendUnavailable, FetchError
from vqedge.packages import pip_command
from vqedge.pickles import conversion_line, pickles_among

_COMMIT = "commit.txt"  # written last
_OR_FETCH = ", or fetch a packaged source instead"
_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
_MODEL_FILES = (
    "README.md",
    "config.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
)


def download(
    source: HubSource, folder: Path, work: Path, progress: Progress, or_else: str = _OR_FETCH
) -> str:
    """Put the files of `source` into `folder`, all of one commit.

    Args:
        source: the row; its revision is resolved to a commit first.
        folder: where the files go; exists.
        work: where they arrive. Kept on failure, so that the next call resumes.
        progress: told which file is on its way; the library counts the bytes itself.
        or_else: what else to do where the hub cannot be reached.

    Returns:
        the commit that was fetched.

    Raises:
        BackendUnavailable: the huggingface_hub library is not installed.
        FetchError: the hub cannot be reached, or refuses.
        OSError: the folders cannot be written.
    """
    library = _library(source.name)
    with _hub_errors(source.name, or_else):
        commit = library.HfApi().model_info(source.name, revision=source.revision).sha
        for name in source.files:
            progress(f"downloading {name} of {source.name}", 0, 0)
            library.hf_hub_download(source.name, name, revision=commit, local_dir=work)
    for name in source.files:
        os.replace(work / name, folder / name)
    shutil.rmtree(work, ignore_errors=True)
    return str(commit)


def download_model(name: str, revision: str, folder: Path, progress: Progress) -> str:
    """Put the safetensors, configurations and model card of a repository into a folder.

    Args:
        name: OWNER/NAME.
        revision: branch, tag or commit; of a commit that lies there the hub is not asked.
        folder: where the files go; made if missing. Files of another commit are replaced.
        progress: as for `download`.

    Returns:
        the commit that was fetched.

    Raises:
        BackendUnavailable: the huggingface_hub library is not installed.
        FetchError: the hub cannot be reached, or refuses, or the repository has no safetensors.
        OSError: the folders cannot be written.
    """
    if (whole := _commit_of(folder)) == revision:
        return revision
    library, work = _library(name), folder.with_name(f"{folder.name}.part")
    elsewhere = f"download it elsewhere: hf download {name} --local-dir FOLDER, then import FOLDER"
    here = f"take what was downloaded: --revision {whole}" if whole else elsewhere
    with _hub_errors(name, f", or {here}"):
        info = library.HfApi().model_info(name, revision=revision)
    listed = [item.rfilename for item in info.siblings or ()]
    _require_weights(name, str(info.sha), listed)
    if whole == info.sha:
        return str(info.sha)
    named = {_SINGLE}
    if _INDEX in listed:
        with _hub_errors(name, f", or {elsewhere}"):
            progress(f"downloading {_INDEX} of {name}", 0, 0)
            index = library.hf_hub_download(name, _INDEX, revision=info.sha, local_dir=work)
        named = {_INDEX, *_named_by(Path(index), filter(_is_shard, listed))}
    files = tuple(file for file in listed if file in _MODEL_FILES or file in named)
    (folder / _COMMIT).unlink(missing_ok=True)  # first: from now on the folder holds nothing whole
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    weights = next(filter(_is_shard, files))
    source = HubSource(name, weights, files, "", "", str(info.sha))
    commit = download(source, folder, work, progress, f", or {elsewhere}")
    (folder / _COMMIT).write_text(commit)
    return commit


def _library(name: str) -> ModuleType:
    """huggingface_hub, to download the repository `name`."""
    try:
        import huggingface_hub
    except ImportError:
        raise BackendUnavailable(
            f"{name}: needs the huggingface_hub library; {pip_command()} install huggingface_hub"
        ) from None
    return huggingface_hub


def _require_weights(name: str, commit: str, listed: Sequence[str]) -> None:
    shard = next(filter(_is_shard, listed), None)
    if shard and (_INDEX in listed or _SINGLE in listed):
        return
    if shard:
        raise FetchError(
            f"{name}: has no {_SINGLE}, only others, as {shard}; choose a repository in the layout "
            "of transformers"
        )
    raise FetchError(f"{name}: has no safetensors{_conversion(name, commit, listed)}")


def _named_by(index: Path, shards: Iterable[str]) -> set[str]:
    """Those of the shards that an index names; all of one that the import will refuse."""
    found = set(shards)
    try:
        return found & set(json.loads(index.read_bytes())["weight_map"].values()) or found
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return found


def _conversion(name: str, commit: str, listed: Sequence[str]) -> str:
    """What to do about a repository of pickles."""
    pickles = pickles_among(listed)
    if not pickles:
        return ", nor other weights that are known"
    folder = PurePath(name.rpartition("/")[2])
    fetched = shlex.join(["hf", "download", name, "--revision", commit])
    line = conversion_line([folder / file for file in pickles], folder / "model.safetensors")
    return (
        f", and {pickles[0]} is a pickle, which runs code when it is read; convert it, then "
        f"import {folder}: {fetched} --local-dir {shlex.quote(str(folder))} && {line}"
    )


def _commit_of(folder: Path) -> str | None:
    """What a folder holds whole."""
    path = folder / _COMMIT
    return path.read_text() if path.is_file() else None


def _is_shard(file: str) -> bool:
    return file.endswith(".safetensors") and "/" not in file


@contextmanager
def _hub_errors(name: str, or_else: str) -> Iterator[None]:
    """Whatever the library raises as ours, but a full disk."""
    try:
        yield
    except Exception as error:  # errors of requests or httpx, depending on the library's version
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        raise FetchError(
            f"{name}: cannot download from the Hugging Face hub: {_cause(error)}; check the "
            f"network and your access ('hf auth login'){or_else}"
        ) from error


def _cause(error: Exception) -> str:
    """What the network said, however deep in errors of libraries; else what the library says."""
    told, *_ = str(error).strip().splitlines() or [type(error).__name__]
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError) and link.strerror:
            told = link.strerror
        link = link.__cause__ or link.__context__
    return told
