"""Where a checkpoint's base weights are: fetched by name, or in the checkpoint itself.

An imported model's weights lie beside its configuration, which names their sha256; `origin.json`
says where they come from.
"""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vqedge.base.fetch import BaseWeights, fetch
from vqedge.base.sources import SOURCES, ImportedSource
from vqedge.checkpoint import ENCODER_WEIGHTS, LLM_WEIGHTS, ORIGIN
from vqedge.config import EncoderConfig, LlmConfig, ModelConfig
from vqedge.errors import CheckpointError
from vqedge.files import file_sha256, replacing
from vqedge.progress import byte_progress
from vqedge.validation import first_fault

Text = Annotated[str, Field(min_length=1, max_length=200)]


class Origin(BaseModel):
    """`origin.json`: what was imported.

    Attributes:
        source: hub id, or the name of the folder.
        revision: commit of a hub's repository; None of a folder.
        licence: as the source tells it.
        ignored: tensors of the source that nothing here depends on.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    source: Text
    revision: Text | None
    licence: Text
    ignored: tuple[str, ...]


def encoder_weights(config: EncoderConfig, folder: Path) -> BaseWeights:
    """The vision backbone of a checkpoint; raises as `llm_weights` does."""
    return _weights(config, folder / ENCODER_WEIGHTS)


def llm_weights(config: LlmConfig, folder: Path) -> BaseWeights:
    """The language model of a checkpoint.

    Raises:
        CheckpointError: it lies in the checkpoint, but is missing or another one.
        FetchError: it has to be fetched and cannot be.
    """
    return _weights(config, folder / LLM_WEIGHTS)


def origin_of(folder: Path) -> Origin:
    """What a checkpoint was imported from.

    Raises:
        CheckpointError: it does not say.
    """
    path = folder / ORIGIN
    try:
        return Origin.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); import it again") from error
    except ValidationError as error:
        raise CheckpointError(f"{path}: {first_fault(error)}; import it again") from error


def carry_weights(config: ModelConfig, source: Path, target: Path) -> None:
    """Put a checkpoint's own base weights into one that was trained from it; links where it can."""
    parts = ((config.encoder, ENCODER_WEIGHTS), (config.llm, LLM_WEIGHTS))
    names = [name for part, name in parts if part.source not in SOURCES]
    for name in [*names, ORIGIN] if names else []:
        if not (target / name).exists():
            try:
                (target / name).hardlink_to(source / name)
            except OSError:
                with replacing(target / name) as temporary:
                    shutil.copyfile(source / name, temporary)


def _weights(config: EncoderConfig | LlmConfig, path: Path) -> BaseWeights:
    if config.source in SOURCES:
        with byte_progress() as tell:
            return fetch(config.source, progress=tell)
    if not path.is_file():
        raise CheckpointError(f"{path.parent}: no {path.name}; was it made by `vqedge import`?")
    sha256 = _known_sha256(path)
    if sha256 != config.weights_sha256:
        raise CheckpointError(f"{path}: another file than config.json names; import it again")
    origin = origin_of(path.parent)
    source = ImportedSource(origin.source, origin.licence, f"{path.name} of an imported model")
    return BaseWeights(path, sha256, source, origin.revision)


def _known_sha256(path: Path) -> str:
    """SHA-256 of a file, kept: an export asks several times for the same gigabytes."""
    status = path.stat()
    return _sha256_once(path.absolute(), status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=16)
def _sha256_once(path: Path, _size_bytes: int, _mtime_ns: int) -> str:
    return file_sha256(path)
