"""A folder for temporary files, where there is a place for one."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vqedge.errors import ConfigError


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder in `TMPDIR`, or where the system keeps such; gone at the end.

    Raises:
        ConfigError: none can be made.
    """
    try:
        made = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    except OSError as error:
        raise ConfigError(
            f"no folder for temporary files can be made ({error.strerror}); "
            "set TMPDIR to one that can be written"
        ) from error
    with made as name:
        yield Path(name)
