"""The bundle: the folder that export writes and the runtime reads. See docs/bundle-format.md."""

from vqedge.bundle.default import bundle_or_default
from vqedge.bundle.manifest import (
    BaseWeightsRecord,
    BridgeRecord,
    BundleFacts,
    CodebookRecord,
    EncoderRecord,
    EngineRecord,
    FileRecord,
    LlmRecord,
    Manifest,
    ProfileRecord,
    ProvenanceRecord,
    QuantizerRecord,
    TensorRecord,
    VariantRecord,
)
from vqedge.bundle.reader import Bundle, open_bundle
from vqedge.bundle.rewrite import rewritten
from vqedge.bundle.writer import BundleDraft, bundle_writer

__all__ = [
    "BaseWeightsRecord",
    "BridgeRecord",
    "Bundle",
    "BundleDraft",
    "BundleFacts",
    "CodebookRecord",
    "EncoderRecord",
    "EngineRecord",
    "FileRecord",
    "LlmRecord",
    "Manifest",
    "ProfileRecord",
    "ProvenanceRecord",
    "QuantizerRecord",
    "TensorRecord",
    "VariantRecord",
    "bundle_or_default",
    "bundle_writer",
    "open_bundle",
    "rewritten",
]
