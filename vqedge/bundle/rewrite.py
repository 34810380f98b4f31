"""A bundle with some files changed: written anew beside it and exchanged in one step."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from vqedge.bundle.manifest import BundleFacts, EngineRecord
from vqedge.bundle.reader import Bundle
from vqedge.bundle.writer import bundle_writer, take_over


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

    Returns:
        the new bundle, with its folder as it was given.

    Raises:
        BundleError: a file that has no place in a bundle, the bundle is no longer the one that
            was verified, or the disk cannot be written.
    """
    manifest = bundle.manifest
    kept = manifest.engines if engines is None else engines
    dropped = {engine.file for engine in manifest.engines} - {engine.file for engine in kept}
    stay = {f.path: f.sha256 for f in manifest.files if f.path not in dropped | put.keys()}
    out = bundle.root.resolve()
    with bundle_writer(out, overwrite=True, replaces=manifest.digest) as draft:
        for path in stay:
            take_over(bundle.root / path, draft.folder / path)
        for path, content in put.items():
            target = draft.folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, Path):
                shutil.copyfile(content, target)
            else:
                target.write_bytes(content)
        parts = {name: getattr(manifest, name) for name in BundleFacts.model_fields}
        made = draft.finish(BundleFacts(**parts | {"engines": kept}), stay)
    return replace(made, root=bundle.root)
