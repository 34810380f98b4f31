"""A recipe: the YAML file that a training run is made from, as pydantic models, and its reading.

Unknown keys are refused, so a typo never passes silently.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)
from typing_extensions import Self

from vqedge.checkpoint import CONFIG, ORIGIN, model_config_of
from vqedge.config import Config, ModelConfig
from vqedge.data.seeds import HELD_OUT_SEEDS, HELD_OUT_SPLITS
from vqedge.data.world import WORLD_VERSION
from vqedge.errors import ConfigError, UsageError, first_line
from vqedge.files import text_within
from vqedge.reducers import follows_question
from vqedge.validation import Fault, fault_from_error

_MOST_BYTES = 1 << 20
_MERGE = "tag:yaml.org,2002:merge"  # <<, which may stand twice
_OUTPUT = "runs/tiny"
_MOST_WORKERS = 256  # each is a process of its own, with PyTorch in it


class WorldConfig(Config):
    """Generated clips of moving shapes."""

    kind: Literal["world"] = "world"
    seed: NonNegativeInt = 1
    clips: PositiveInt = 4000
    weight: Annotated[float, Field(gt=0)] = 1.0
    caption_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """How often one of a clip's questions asks for a description."""
    kind_weights: dict[str, PositiveInt] = Field(default_factory=dict)
    """How often kinds of questions are asked beside the others; 1 for those not named, but 0 for
    `binding`, which asks which colour belongs to which shape where that can be mixed up."""


class PhotosConfig(Config):
    """Clips composed of labelled photos; `index` is described in `vqedge.data.photos`."""

    kind: Literal["photos"]
    index: Path
    split: str = "train"
    seed: NonNegativeInt = 1
    clips: PositiveInt = 2000
    weight: Annotated[float, Field(gt=0)] = 1.0
    caption_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    kind_weights: dict[str, PositiveInt] = Field(default_factory=dict)
    """As of generated clips. Without any, every clip is asked as many questions as were wanted,
    nearly half of which are whether something is there."""


class JsonlConfig(Config):
    """Videos and questions of one's own; `path` is described in `docs/train-your-own.md`."""

    kind: Literal["jsonl"]
    path: Path
    weight: Annotated[float, Field(gt=0)] = 1.0


SourceConfig = Annotated[WorldConfig | PhotosConfig | JsonlConfig, Field(discriminator="kind")]


class DataConfig(Config):
    """What to train on: sources, mixed by weight."""

    sources: Annotated[tuple[SourceConfig, ...], Field(min_length=1)] = (WorldConfig(),)
    questions_per_clip: PositiveInt = 8
    time_reversal: bool = True
    """Show clips backwards too, where their questions can be turned."""
    budgets: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (8, 16, 32, 64)
    """Clips are quantised at each of these, and every step draws one of them; but for a kind whose
    tokens follow the question, which has the model's default alone."""
    keep_features: bool = False
    """Keep the patch features on disk, 1.6 MB a clip, for runs with other quantizers; those of a
    reducer with weights are always kept."""
    workers: int | Literal["auto"] = "auto"
    """Processes that draw and decode clips while others are encoded; `auto`: as there are cores."""
    validation_questions: PositiveInt = 200
    """Most questions of a file that validation asks: the same ones every time, spread over its
    clips."""

    @field_validator("workers")
    @classmethod
    def _not_too_many(cls, workers: int | Literal["auto"]) -> int | Literal["auto"]:
        if workers != "auto" and not 0 <= workers <= _MOST_WORKERS:
            raise ValueError(f"give 0 to {_MOST_WORKERS}, or auto")
        return workers


class OptimConfig(Config):
    """The optimiser and its schedule."""

    steps: PositiveInt = 1000
    clips_per_step: PositiveInt = 16
    accumulate: PositiveInt = 1
    """Parts that a step's clips are computed in, one after another, to save memory."""
    learning_rate: Annotated[float, Field(gt=0)] = 5e-4
    bridge_learning_rate: Annotated[float, Field(gt=0)] = 3e-4
    encoder_learning_rate: Annotated[float, Field(gt=0)] = 3e-5
    """Of `model.encoder.trained_blocks`."""
    warmup_steps: PositiveInt = 30
    naming_steps: Annotated[int, Field(ge=0)] = 300
    """Steps of the bridge alone, learning to name its codes, before the language model joins."""
    naming_clips_per_step: PositiveInt = 48
    naming_learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    naming_share: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of a code's patches that has to lie on a thing, and more, for the code to have its
    name. Codes of fixed places, which mix what is there, have none by half of them."""
    naming_weight_decay: Annotated[float, Field(ge=0)] = 0.01
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    commitment_weight: Annotated[float, Field(ge=0)] = 0.25
    """Of a learned codebook's own loss, beside that of the language model."""
    frame_dropout: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of a clip's frames that the token hash leaves out, drawn anew in every step."""
    hash_dropout: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of clips without their token hash, drawn anew in every step; of several processes each
    draws the same places of its part."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    compile: bool | None = None
    """Compile the language model's blocks, after which a step takes half as long; by default where
    a compiler is at hand and the steps are enough to be worth the minute."""


def source_identity(source: SourceConfig) -> str:
    """What must not change of a source while a run goes on; how many clips it has may."""
    if isinstance(source, WorldConfig):
        return f"{source.kind}{WORLD_VERSION}.{source.seed}"
    if isinstance(source, PhotosConfig):
        return f"{source.kind}.{source.seed}"
    return source.kind


def file_identity(source: SourceConfig) -> str | None:
    """The name of a source's file and its split, not whose folder it is in."""
    if isinstance(source, WorldConfig):
        return None
    if isinstance(source, PhotosConfig):
        return f"{source.index.name}:{source.split}"
    return source.path.name


def clips_of(source: SourceConfig) -> tuple[str | int, ...]:
    """Which clips a source shows, whatever is asked about them and however many there are."""
    if isinstance(source, WorldConfig):
        return source.kind, source.seed
    if isinstance(source, PhotosConfig):
        return source.kind, str(source.index.resolve()), source.split
    return source.kind, str(source.path.resolve())


class TrainConfig(Config):
    """A training run: one YAML file."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    init: Path | None = None
    """Checkpoint to start from; only what it lacks is then taught to name codes first."""
    output: Path = Path(_OUTPUT)
    seed: NonNegativeInt = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    save_every: PositiveInt = 50
    keep: Annotated[int, Field(ge=0)] = 2
    """Numbered checkpoints kept beside the newest."""
    validation: Annotated[tuple[SourceConfig, ...], Field(min_length=1)] = (
        WorldConfig(seed=2, clips=64),
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if max(self.budgets) > self.model.quantizer.codes:
            raise ValueError("data.budgets: none may exceed model.quantizer.codes")
        if self.model.quantizer.default_budget not in self.budgets:
            raise ValueError("data.budgets: want model.quantizer.default_budget among them")
        if self.optim.clips_per_step % self.optim.accumulate:
            raise ValueError("optim.accumulate must divide optim.clips_per_step")
        if self.model.encoder.trained_blocks and self.init is None:
            raise ValueError("model.encoder.trained_blocks: want init, a model with frozen blocks")
        held_out = {clips_of(source) for source in self.validation}
        for source in map(clips_of, self.data.sources):
            never = source[-1] in HELD_OUT_SEEDS or source[-1] in HELD_OUT_SPLITS
            if never or source in held_out:
                raise ValueError(
                    f"data.sources: {source[0]} {source[-1]} is held out to be asked about; "
                    "choose another seed, split or file"
                )
        dropout = self.optim.frame_dropout or self.optim.hash_dropout
        if dropout and not self.model.attention.reads_hash:
            raise ValueError(
                "optim.frame_dropout and hash_dropout: want attention.hash occupancy or places"
            )
        if self.model.attention.kind != "paper":
            raise ValueError("model.attention.kind: only 'paper' is trained here")
        return self

    @property
    def budgets(self) -> tuple[int, ...]:
        """Those that a step may draw."""
        quantizer = self.model.quantizer
        one = follows_question(quantizer.kind)
        return (quantizer.default_budget,) if one else self.data.budgets

    @property
    def base(self) -> Path:
        """Folder of imported base weights: the run's own once it has them, until then `init`."""
        carried = (self.output / ORIGIN).exists()  # the last of them that a save puts there
        return self.output if carried or self.init is None else self.init


def read_recipe(
    path: Path, overrides: list[str] | None = None, output: Path | None = None
) -> TrainConfig:
    """Read a recipe and apply `key.sub=value` overrides; `output` is one of its own.

    A file without a `model` has that of `init`, which overrides then change; where `init` is gone,
    that of the run in `output`.

    Raises:
        UsageError: an override is none, or says what no recipe may.
        ConfigError: the file is missing, is not YAML, or holds an unknown key or a bad value.
        CheckpointError: `init` is none, where its model is wanted, nor is `output`.
    """
    try:
        values: dict[str, Any] = _value_of(text_within(path, _MOST_BYTES)) or {}
        if not isinstance(values, dict):
            raise ConfigError(
                f"{path}: want keys and values; see recipes/world.yaml for an example"
            )
        _apply(values, overrides or [], output)
        return TrainConfig.model_validate(values)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; see recipes/world.yaml for an example") from None
    except OSError as error:
        raise ConfigError(
            f"{error.filename or path}: {error.strerror}; give a file as recipes/world.yaml"
        ) from error
    except ValidationError as error:
        raise _refused(path, overrides or [], fault_from_error(error)) from error
    except ValueError as error:
        raise ConfigError(f"{path}: {_one_line(error)}") from error


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice, of which YAML here takes the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Called for every mapping, before those of `<<` are put into it.

        Raises:
            YAMLError: a key stands twice.
        """
        node = super().compose_mapping_node(anchor)
        found = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE:
                if (key.tag, key.value) in found:
                    raise yaml.MarkedYAMLError(
                        problem=f"the key {key.value!r} is repeated", problem_mark=key.start_mark
                    )
                found.add((key.tag, key.value))
        return node


def _value_of(text: str) -> Any:
    """What YAML says.

    Raises:
        ValueError: it is none.
    """
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    except (LookupError, AttributeError, TypeError, ArithmeticError) as error:
        raise ValueError(f"a value is not what its tag says ({first_line(error)})") from error


def _apply(values: dict[str, Any], overrides: list[str], output: Path | None) -> None:
    """Apply overrides; where the file has no model they change that of `init`.

    What says where that is, is applied first.
    """
    first = [override for override in overrides if override.startswith(("init=", "output="))]
    for override in first:
        _apply_override(values, override)
    if output is not None:
        values["output"] = str(output)
    init = values.get("init")
    if isinstance(init, str) and init and "model" not in values:
        folder = _folder_of_model(Path(init), values.get("output", _OUTPUT))
        values["model"] = model_config_of(folder, whole=False).model_dump(mode="json")
    for override in overrides:
        if override not in first:
            _apply_override(values, override)


def _folder_of_model(init: Path, output: Any) -> Path:
    """`init`; once that is gone, the folder of the run that began with it."""
    gone = not (init / CONFIG).exists()
    run = Path(output) if isinstance(output, str) else None
    return run if gone and run is not None and (run / CONFIG).exists() else init


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator:
        raise UsageError(f"{override!r}: an override reads key.sub=value, as optim.steps=500")
    *parents, last = key.split(".")
    place: Any = values
    for parent in parents:
        if isinstance(place, dict):
            place = place.setdefault(parent, {})
        else:
            place = place[_number(parent, place, override)]
        if not isinstance(place, dict | list):
            raise ConfigError(f"{override!r}: {parent!r} is a value, it holds no keys")
    where = last if isinstance(place, dict) else _number(last, place, override)
    try:
        place[where] = _value_of(text)
    except ValueError as error:
        raise UsageError(f"{override!r}: {_one_line(error)}") from error


def _number(key: str, items: list[Any], override: str) -> int:
    """Place in a list, counted from 0."""
    if not (key.isdecimal() and int(key) < len(items)):
        raise ConfigError(f"{override!r}: {key!r} is not one of {len(items)}, counted from 0")
    return int(key)


def _refused(path: Path, overrides: Sequence[str], found: Fault) -> ConfigError:
    """What pydantic found, as the fault of the override that says so, or of the file."""
    fault = replace(found, place=_without_tags(found.place))
    if fault.kind == "extra_forbidden":
        fault = replace(fault, reason=_no_such_key(fault.place))
    for override in reversed(overrides):
        key = tuple(override.partition("=")[0].split("."))
        if _speaks_of(key, fault):
            own = replace(fault, place=()) if tuple(map(str, fault.place)) == key else fault
            return UsageError(f"{override!r}: {own}")
    return ConfigError(f"{path}: {fault}")


def _without_tags(place: tuple[str | int, ...]) -> tuple[str | int, ...]:
    """A place as the file has it: after a number pydantic names which of the sources it took."""
    before = (None, *place)
    return tuple(
        part
        for last, part in zip(before, place, strict=False)
        if isinstance(part, int) or not isinstance(last, int)
    )


def _speaks_of(key: tuple[str, ...], fault: Fault) -> bool:
    """Whether an override's key is a fault's place, or one of both lies in the other.

    What holds several values together, a `value_error`, is the fault of none of them.
    """
    place = tuple(map(str, fault.place))
    shared = min(len(place), len(key))
    inside = len(place) >= len(key) or fault.kind != "value_error"
    return bool(shared) and inside and place[:shared] == key[:shared]


def _no_such_key(place: Sequence[str | int]) -> str:
    part: Any = TrainConfig()
    for key in place[:-1]:
        part = getattr(part, str(key), None)
    known = type(part).model_fields if isinstance(part, Config) else ()
    near = get_close_matches(str(place[-1]), known, n=1)
    return "no such key; " + (f"did you mean {near[0]}?" if near else "--print-config shows all")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
