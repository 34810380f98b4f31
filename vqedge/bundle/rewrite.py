"""A bundle with some files changed: written anew beside it and exchanged in one step."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from vqedge.bundle.manifest import BundleFacts, EngineRecord
from vqedge.bundle.reader import Bundle, open_bundle
from vqedge.bundle.writer import bundle_writer
from vqedge.errors import BundleError


def rewritten(
    bundle: Bundle,
    put: Mapping[str, Path | bytes],
    engines: tuple[EngineRecord, ...] | None = None,
) -> Bundle:
    """Replace or add files of a bundle; everything else stays as it is.

    Args:
        bundle: the bundle, verified. What a link leads to is replaced, the link stays.
        put: bytes, or a file to copy, by the path in the bundle.
        engines: the manifest's engines from now on; files of others are left out. As before by
            default.

    Raises:
        BundleError: a file that has no place in a bundle, the bundle is no longer the one that
            was verified, or the disk cannot be written.
    """
    manifest = bundle.manifest
    if open_bundle(bundle.root, verify=False).manifest.digest != manifest.digest:
        raise BundleError(f"{bundle.root}: was changed meanwhile; run the command again")
    kept = manifest.engines if engines is None else engines
    dropped = {engine.file for engine in manifest.engines} - {engine.file for engine in kept}
    stay = {f.path: f.sha256 for f in manifest.files if f.path not in dropped | put.keys()}
    with bundle_writer(bundle.root.resolve(), overwrite=True) as draft:
        for path in stay:
            _take_over(bundle.root / path, draft.folder / path)
        for path, content in put.items():
            target = draft.folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, Path):
                shutil.copyfile(content, target)
            else:
                target.write_bytes(content)
        parts = {name: getattr(manifest, name) for name in BundleFacts.model_fields}
        return draft.finish(BundleFacts(**parts | {"engines": kept}), stay)


def _take_over(source: Path, target: Path) -> None:
    """The same file in the new folder: a second name for it where the disk allows, or a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
