"""Open a bundle, or say in one line what is wrong with it. Loads nothing but the manifest."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from vqedge.bundle.folder import bundle_errors, hashes, is_ignored, scan
from vqedge.bundle.manifest import (
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    Manifest,
    manifest_from_bytes,
)
from vqedge.errors import BundleError
from vqedge.files import file_sha256
from vqedge.workspace import set_aside

_OUTSIDE = "encoder-data"  # weights that a graph has beside it


@dataclass(frozen=True)
class Bundle:
    """An opened bundle. Its files are read through `path_of`, which knows listed files only.

    Attributes:
        root: the folder, as the user wrote it.
        manifest: what is in it.
        stamps: of each file that was hashed its size in bytes and, in nanoseconds, the time of its
            last change, from before that.
    """

    root: Path
    manifest: Manifest
    stamps: Mapping[str, tuple[int, int]] = field(default_factory=dict, repr=False, compare=False)
    _folder: Path = field(init=False, repr=False, compare=False)  # wherever the process goes

    def __post_init__(self) -> None:
        object.__setattr__(self, "_folder", self.root.absolute())

    def path_of(self, role_or_file: str) -> Path:
        """The path of a listed file, by its path in the bundle or by a role that one file has.

        Raises:
            BundleError: not listed, or several files have the role.
        """
        by_path = [file.path for file in self.manifest.files if file.path == role_or_file]
        by_role = [file.path for file in self.manifest.files if file.role == role_or_file]
        found = by_path or by_role
        if len(found) != 1:
            problem = "several files have this role" if found else "not listed in the manifest"
            names = ", ".join(file.path for file in self.manifest.files)
            raise BundleError(f"{self.root}: {role_or_file}: {problem}; it lists {names}")
        return self._place / found[0]

    def check_unchanged(self, paths: Collection[str]) -> None:
        """Refuse encoders that are not those that were verified; nothing if none were.

        Args:
            paths: of the files to be opened, in the bundle; weights beside a graph count with it.

        Raises:
            BundleError: a file has changed since, or is gone.
        """
        for file in self.manifest.files:
            stamp = self.stamps.get(file.path)
            if stamp is None or not (file.path in paths or file.role == _OUTSIDE):
                continue
            if not self._is_as_verified(file.path, stamp, file.sha256):
                line = "has changed since the bundle was opened, or is gone; open the bundle again"
                raise BundleError(f"{self.root}: {file.path}: {line}")

    def _is_as_verified(self, path: str, stamp: tuple[int, int], sha256: str) -> bool:
        place = self._folder / path
        with suppress(OSError):  # it is gone
            return _stamp(place) == stamp or file_sha256(place) == sha256
        return False

    @property
    def _place(self) -> Path:
        """The folder as the user wrote it while that leads there, else its full path."""
        with suppress(OSError):
            if self.root.samefile(self._folder):
                return self.root
        return self._folder


def open_bundle(path: Path, *, verify: bool = True) -> Bundle:
    """Read and check a bundle.

    Args:
        path: the folder `NAME.vqedge/`.
        verify: hash every file. Without it only names and sizes are compared.

    Raises:
        BundleError: the bundle is missing, altered, incomplete or of another schema version.
    """
    root = Path(path)
    with bundle_errors(root):
        _check_folder(root)
        bundle = Bundle(root, manifest_from_bytes(_manifest_data(root)))
        _check_listing(bundle)
        if verify:
            bundle = replace(bundle, stamps=_stamps(bundle))
            _check_hashes(bundle)
    return bundle


def _check_folder(root: Path) -> None:
    if not root.exists():
        if (left := set_aside(root)) is not None:
            raise BundleError(f"no such folder; a killed command left it as {left}: move it back")
        raise BundleError("no such folder; give the path of a NAME.vqedge folder")
    if not root.is_dir():
        raise BundleError("not a folder; a bundle is a folder with a manifest.json")


def _manifest_data(root: Path) -> bytes:
    path = root / MANIFEST_NAME
    if path.is_symlink() or not path.is_file():
        raise BundleError(f"no {MANIFEST_NAME} in it; give a bundle, or export again")
    with path.open("rb") as file:
        data = file.read(MAX_MANIFEST_BYTES + 1)
    if len(data) > MAX_MANIFEST_BYTES:
        raise BundleError(f"{MANIFEST_NAME}: over {MAX_MANIFEST_BYTES} bytes; export again")
    return data


def _check_listing(bundle: Bundle) -> None:
    found = scan(bundle.root)
    for file in bundle.manifest.files:
        if file.path not in found:
            raise BundleError(f"{file.path}: missing; copy the bundle again")
        if found[file.path] != file.size_bytes:
            raise BundleError(
                f"{file.path}: has {found[file.path]} bytes, the manifest says {file.size_bytes}; "
                "copy the bundle again"
            )
    listed = {file.path for file in bundle.manifest.files}
    for path in sorted(found.keys() - listed):
        if not is_ignored(path):
            raise BundleError(f"{path}: not listed in the manifest; remove it or export again")


def _stamps(bundle: Bundle) -> dict[str, tuple[int, int]]:
    paths = [file.path for file in bundle.manifest.files]
    return {path: _stamp(bundle.root / path) for path in paths}


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _check_hashes(bundle: Bundle) -> None:
    found = hashes(bundle.root, [file.path for file in bundle.manifest.files])
    for file in bundle.manifest.files:
        if found[file.path] != file.sha256:
            raise BundleError(
                f"{file.path}: altered, its sha256 is not the manifest's; copy the bundle again"
            )
