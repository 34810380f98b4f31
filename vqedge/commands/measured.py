"""What a figure is of: the model, by its digests, and the machine and the libraries it ran on."""

from __future__ import annotations

from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from vqedge.bundle import Manifest
from vqedge.checkpoint import checkpoint_sha256
from vqedge.cores import processor_name, usable_cores
from vqedge_runtime.encoders.providers import installed_versions

_PACKAGES = ("vqedge", "av", "llama-cpp-python", "torch", "transformers")  # and those of encoders


def model_of_bundle(folder: Path, manifest: Manifest) -> dict[str, str]:
    """A bundle's name, and the digests of its checkpoint, encoder and language model."""
    digests = {file.role: file.sha256 for file in manifest.files}
    return {
        "name": folder.resolve().name,
        "checkpoint_sha256": manifest.provenance.checkpoint_sha256,
        "encoder_sha256": digests["encoder"],
        "llm_sha256": digests["llm"],
    }


def model_of_checkpoint(folder: Path) -> dict[str, str]:
    """A checkpoint's name and digest."""
    return {"name": folder.resolve().name, "checkpoint_sha256": checkpoint_sha256(folder)}


def machine() -> str:
    """The processor and how many of its cores this process may use."""
    return f"{processor_name()}, {usable_cores()} cores"


def versions() -> dict[str, str]:
    """Versions of the installed packages that answer questions."""
    found = installed_versions()
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return dict(sorted(found.items()))
