"""What `manifest.json` says, and its one canonical spelling. See docs/bundle-format.md."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from typing_extensions import Self

from vqedge.bundle.shapes import may_be
from vqedge.clip_limits import MAX_SIZE, require_clip_fits
from vqedge.errors import BundleError
from vqedge.json_text import without_repeats
from vqedge.pickles import may_be_pickle
from vqedge.sampling import FrameRule, Resize, Sampling
from vqedge.validation import first_fault

SCHEMA_VERSION: Final = 3
MANIFEST_NAME = "manifest.json"
MAX_MANIFEST_BYTES = 1 << 20
MAX_FILES = 256
MAX_FILE_BYTES = 16 << 30
MAX_BUNDLE_BYTES = 32 << 30
MAX_DEPTH = 4
_NAME = r"[A-Za-z0-9_]([A-Za-z0-9._+-]*[A-Za-z0-9_+-])?"

Role = Literal[
    "encoder",
    "encoder-variant",
    "encoder-data",
    "bridge",
    "llm",
    "parity",
    "licence",
    "engine",
]
Precision = Literal["fp32", "fp16", "bf16", "int8"]
Dtype = Literal[
    "bool", "uint8", "int8", "int32", "int64", "float16", "bfloat16", "float32", "float64"
]


def _not_a_pickle(path: str) -> str:
    if may_be_pickle(path):
        raise ValueError("pickles run code when loaded and have no place in a bundle")
    if path.lower() == MANIFEST_NAME:
        raise ValueError("the manifest does not list itself")
    return path


FilePath = Annotated[
    str,
    Field(max_length=200, pattern=rf"^{_NAME}(/{_NAME}){{0,{MAX_DEPTH}}}$"),
    AfterValidator(_not_a_pickle),
]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Text = Annotated[str, Field(min_length=1, max_length=200)]
Count = Annotated[int, Field(ge=1, le=1 << 31)]
Dimension = Annotated[int, Field(ge=0, le=1 << 31)] | Text


class Record(BaseModel):
    """Base of all parts of the manifest: immutable, strict about names and types.

    A file has what has a default, too, unless it is excluded there: it is not canonical otherwise.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        json_schema_serialization_defaults_required=True,
    )


class FileRecord(Record):
    """One file of the bundle."""

    path: FilePath
    size_bytes: Annotated[int, Field(ge=0, le=MAX_FILE_BYTES)]
    sha256: Sha256
    role: Role


class TensorRecord(Record):
    """One input or output of the encoder. A text in `shape` names a free dimension."""

    name: Text
    dtype: Dtype
    shape: Annotated[tuple[Dimension, ...], Field(max_length=8)]


class VariantRecord(Record):
    """The same encoder in another precision: same inputs, outputs and graph otherwise."""

    file: FilePath
    precision: Precision


class EncoderRecord(Record):
    """The encoder: frames to token rows."""

    file: FilePath
    inputs: Annotated[tuple[TensorRecord, ...], Field(min_length=1, max_length=16)]
    outputs: Annotated[tuple[TensorRecord, ...], Field(min_length=1, max_length=16)]
    frames: Count
    size: Annotated[int, Field(ge=1, le=MAX_SIZE)]  # pixels per side
    grid: Count  # patches per side
    source: Text
    block: Count
    opset: Count
    sampling: Annotated[Sampling, Field(exclude_if=lambda rule: rule == "spans")] = "spans"
    resize: Resize = "stretch"
    custom_op: Literal["function", "node"]
    precision: Precision
    variants: Annotated[tuple[VariantRecord, ...], Field(max_length=8)]

    @model_validator(mode="after")
    def _tensors_of_a_clip_that_can_be(self) -> Self:
        clip, patches = (self.frames, self.size, self.size, 3), (self.frames, self.grid, self.grid)
        require_clip_fits(self.frames, self.size, self.grid)
        own = {"index_map": patches} | {i.name: i.shape for i in (*self.inputs, *self.outputs)}
        if not (may_be(own.get("frames", ()), clip) and may_be(own["index_map"], patches)):
            raise ValueError(f"{self.file}: frames is not {clip}, or index_map not {patches}")
        return self

    @property
    def rule(self) -> FrameRule:
        """How a video becomes frames."""
        return FrameRule(self.sampling, self.resize)


class BridgeRecord(Record):
    """The encoder's end: codes or ids and index map to token rows."""

    file: FilePath
    inputs: Annotated[tuple[TensorRecord, ...], Field(min_length=1, max_length=16)]
    outputs: Annotated[tuple[TensorRecord, ...], Field(min_length=1, max_length=16)]


class CodebookRecord(Record):
    """A learned codebook: a code is the sum of one entry of each level."""

    levels: Annotated[int, Field(ge=1, le=64)]
    entries: Annotated[int, Field(ge=2, le=65536)]
    sha256: Sha256  # of the tables


class QuantizerRecord(Record):
    """How patches become codes, and how many tokens that gives unless the user says otherwise."""

    kind: Literal["kmeans", "codebook"]
    codes: Annotated[int, Field(ge=1, le=65536)]
    iterations: Annotated[int, Field(ge=0, le=64)]
    default_budget: Count
    adaptive_error: Annotated[float, Field(gt=0, lt=1)] | None  # None: fixed budgets only
    codebook: CodebookRecord | None
    per_question: Annotated[bool, Field(exclude_if=lambda follows: not follows)] = False
    """A clip's tokens are made anew for every question, `text` among the encoder's inputs; their
    one budget is the default."""

    @model_validator(mode="after")
    def _budget_within_codes(self) -> Self:
        if self.default_budget > self.codes:
            raise ValueError(f"default_budget {self.default_budget} exceeds codes {self.codes}")
        return self

    @model_validator(mode="after")
    def _codebook_where_one_is_learned(self) -> Self:
        if (self.kind == "codebook") != (self.codebook is not None):
            raise ValueError(f"kind {self.kind!r} does not go with codebook {self.codebook}")
        return self


class LlmRecord(Record):
    """The language model and how to talk to it."""

    file: FilePath
    arch: Text
    width: Count
    vocab_size: Count
    video_words: Annotated[Count | None, Field(exclude_if=lambda count: count is None)] = None
    """How many tokens, the last ones, are words that videos are told in."""
    quantization: Text
    context_length: Count
    chat_template: Annotated[str, Field(pattern="^[a-z0-9][a-z0-9._-]{0,63}$")]  # an id
    system_prompt: Annotated[str, Field(max_length=8192)]

    @model_validator(mode="after")
    def _video_words_within_vocabulary(self) -> Self:
        if self.video_words and self.video_words >= self.vocab_size:
            raise ValueError(f"video_words {self.video_words}, vocab_size {self.vocab_size}")
        return self

    @property
    def first_video_word(self) -> int | None:
        """The id of the first of them; None if there are none."""
        return self.vocab_size - self.video_words if self.video_words else None


class BaseWeightsRecord(Record):
    """Weights this bundle was built from."""

    name: Text
    package: Text
    version: Text
    file_sha256: Sha256
    licence: Text


class ProvenanceRecord(Record):
    """Where the bundle comes from. No times and no machine names: exports are reproducible."""

    created_by: Text
    checkpoint_sha256: Sha256
    base_weights: Annotated[tuple[BaseWeightsRecord, ...], Field(max_length=16)]
    tools: Annotated[dict[Text, Text], Field(max_length=64)]


class ProfileRecord(Record):
    """Shapes that an engine was tuned for, of one input that has a free dimension."""

    input: Text
    min: Annotated[tuple[Dimension, ...], Field(max_length=8)]
    opt: Annotated[tuple[Dimension, ...], Field(max_length=8)]
    max: Annotated[tuple[Dimension, ...], Field(max_length=8)]


class EngineRecord(Record):
    """A prebuilt TensorRT engine. It runs where `vqedge.engines.misfit` finds nothing."""

    key: Annotated[str, Field(max_length=150, pattern=rf"^{_NAME}$")]
    file: FilePath
    tensorrt_flavour: Literal["tensorrt", "tensorrt-rtx"]
    tensorrt_version: Text
    compute_capability: Annotated[
        str, Field(max_length=100, pattern=r"^[0-9]+\.[0-9](,[0-9]+\.[0-9])*$")
    ]
    plugin_sha256: Sha256 | None
    onnx_sha256: Sha256
    precision: Precision
    version_compatible: bool  # later TensorRT of the same major version may run it
    hardware_compatible: bool  # GPUs of compute capability 8.0 and above, Jetsons aside, may run it
    inputs: Annotated[tuple[TensorRecord, ...], Field(min_length=1, max_length=16)]
    outputs: Annotated[tuple[TensorRecord, ...], Field(min_length=1, max_length=16)]
    profiles: Annotated[tuple[ProfileRecord, ...], Field(max_length=16)]


class BundleFacts(Record):
    """What an exporter knows. The writer adds files and digest, which makes it a `Manifest`."""

    encoder: EncoderRecord
    bridge: BridgeRecord
    quantizer: QuantizerRecord
    llm: LlmRecord
    provenance: ProvenanceRecord
    engines: Annotated[tuple[EngineRecord, ...], Field(max_length=64)] = ()

    @model_validator(mode="after")
    def _question_where_tokens_follow_one(self) -> Self:
        text = TensorRecord(name="text", dtype="float32", shape=(self.llm.width,))
        wanted = [text] if self.quantizer.per_question else []
        readers: tuple[EncoderRecord | EngineRecord, ...] = (self.encoder, *self.engines)
        for each in readers:
            if [item for item in each.inputs if item.name == "text"] != wanted:
                raise ValueError(
                    f"per_question does not go with the encoder's inputs in {each.file}: text, "
                    "float32 [llm.width], is its own"
                )
        return self

    @model_validator(mode="after")
    def _rows_that_the_llm_reads(self) -> Self:
        for item in self.bridge.outputs:
            if item.name == "tokens" and not may_be(item.shape[-1:], [self.llm.width]):
                raise ValueError(f"{self.bridge.file}: rows are not of llm.width {self.llm.width}")
        return self

    def role_of(self, path: str) -> Role | None:
        """The role of a file, from its place; None if it has none."""
        named: dict[str, Role] = {self.encoder.file: "encoder", self.llm.file: "llm"}
        named[self.bridge.file] = "bridge"
        named |= dict.fromkeys((item.file for item in self.encoder.variants), "encoder-variant")
        named |= dict.fromkeys((engine.file for engine in self.engines), "engine")
        if path in named:
            return named[path]
        if path == "parity.json":
            return "parity"
        if path.startswith(self.encoder.file) and "/" not in path[len(self.encoder.file) :]:
            return "encoder-data"
        return "licence" if path.rpartition("/")[0] == "LICENSES" else None


class Manifest(BundleFacts):
    """The whole of `manifest.json`. One that exists is consistent with itself."""

    schema_version: Literal[3] = SCHEMA_VERSION
    files: Annotated[tuple[FileRecord, ...], Field(min_length=1, max_length=MAX_FILES)]
    digest: Sha256

    @classmethod
    def sealed(cls, facts: BundleFacts, files: tuple[FileRecord, ...]) -> Manifest:
        """A manifest with its digest.

        Raises:
            BundleError: facts and files do not fit each other.
        """
        parts = {name: getattr(facts, name) for name in BundleFacts.model_fields}
        draft = cls.model_construct(**parts, files=files, digest="")
        try:
            return cls(**parts, files=files, digest=digest_of(draft))
        except ValidationError as error:
            raise BundleError(f"{MANIFEST_NAME}: {first_fault(error)}") from error

    @model_validator(mode="after")
    def _check_files(self) -> Self:
        paths = [file.path for file in self.files]
        if paths != sorted(paths):
            raise ValueError("files are not sorted by path")
        if len({path.lower() for path in paths}) < len(paths):
            raise ValueError("files lists a path twice, or twice but for upper and lower case")
        if sum(file.size_bytes for file in self.files) > MAX_BUNDLE_BYTES:
            raise ValueError(f"files are larger than {MAX_BUNDLE_BYTES >> 30} GiB together")
        return self

    @model_validator(mode="after")
    def _check_roles(self) -> Self:
        for file in self.files:
            if file.role != self.role_of(file.path):
                raise ValueError(f"{file.path} is listed with the wrong role {file.role!r}")
        listed = {file.path for file in self.files}
        models = (self.encoder.file, self.bridge.file, self.llm.file)
        variants = (variant.file for variant in self.encoder.variants)
        engines = (engine.file for engine in self.engines)
        for wanted in (*models, *variants, *engines):
            if wanted not in listed:
                raise ValueError(f"{wanted} is used but not listed in files")
        return self

    @model_validator(mode="after")
    def _check_digest(self) -> Self:
        if self.digest != digest_of(self):
            raise ValueError("the digest does not fit: the manifest was altered")
        return self


def digest_of(manifest: Manifest) -> str:
    """The sha256 of a manifest without its digest: the identity of a bundle."""
    values = manifest.model_dump(mode="json", exclude={"digest"})
    return hashlib.sha256(_canonical(values)).hexdigest()


def manifest_bytes(manifest: Manifest) -> bytes:
    """The one spelling of a manifest: two spaces of indent, sorted keys, a newline at the end."""
    return _canonical(manifest.model_dump(mode="json"))


def manifest_from_bytes(data: bytes) -> Manifest:
    """Read `manifest.json`.

    Raises:
        BundleError: not JSON, another schema version, a value that cannot be, or altered.
    """
    try:
        raw = json.loads(data, object_pairs_hook=without_repeats)
    except RecursionError:
        raise BundleError(f"{MANIFEST_NAME}: nested too deeply; export again") from None
    except ValueError as error:
        raise BundleError(f"{MANIFEST_NAME}: not JSON: {error}; export again") from None
    _check_schema_version(raw)
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError as error:
        raise BundleError(f"{MANIFEST_NAME}: {first_fault(error)}; export again") from error
    if manifest_bytes(manifest) != data:
        raise BundleError(f"{MANIFEST_NAME}: not as vqedge writes it: altered; export again")
    return manifest


def _check_schema_version(raw: Any) -> None:
    found = raw.get("schema_version") if isinstance(raw, dict) else None
    if found is None:
        raise BundleError(f"{MANIFEST_NAME}: not a vqedge manifest; give the folder of a bundle")
    if type(found) is not int or found != SCHEMA_VERSION:
        version = found if isinstance(found, int | float) else f"of type {type(found).__name__}"
        raise BundleError(
            f"{MANIFEST_NAME}: schema version {version}; this vqedge reads schema "
            f"{SCHEMA_VERSION}; upgrade vqedge or export again"
        )


def _canonical(values: dict[str, Any]) -> bytes:
    text = json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode()
