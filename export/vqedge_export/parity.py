"""Does the export compute what the checkpoint computes? Measured on generated clips.

Ids are compared as ids: how many patches got another code, how many codes got another entry of a
learned codebook, and how safe the choice was where they did. The language model is compared where
it matters, at the tokens of real answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx
import torch

from vqedge.agreement import SAFE_MARGIN, log_softmax, row_cosines
from vqedge.budget import ADAPTIVE
from vqedge.config import ModelConfig
from vqedge.data.clips import QuestionAnswer
from vqedge.data.generated import generated_frames
from vqedge.data.questions import one_question_per_kind
from vqedge.data.seeds import PARITY_SEED
from vqedge.data.world import scene_from_seed
from vqedge.errors import ExportError, ParityError
from vqedge.model.checkpoint import Checkpoint
from vqedge.model.codebook import Choice
from vqedge.model.encoder import EncodedClip, VideoEncoder
from vqedge.model.gguf_reading import sound_reader
from vqedge.model.llm import PromptTokenizer
from vqedge.model.official import OfficialBridge
from vqedge.model.quantizer import Assignment, KMeansQuantizer, Quantized
from vqedge.model.reducers.quantizer import ReducerQuantizer
from vqedge.nearest_codebook import OP_NAME
from vqedge.reducers import follows_question
from vqedge_export.flips import feeds_for
from vqedge_export.graph import ROW_MASK, adaptive_error_of, noted_reducer, rounds_of
from vqedge_export.light import light_copy
from vqedge_export.onnx_export import CODES, outputs_of
from vqedge_export.op_function import ensure_function
from vqedge_export.report import (
    CodebookParity,
    EncoderParity,
    LlmParity,
    ParityReport,
    Tolerance,
)

Rows = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


class LogitsSource(Protocol):
    """A loaded GGUF that gives raw logits; the runtime's model is one."""

    def logits(self, *pieces: Sequence[int] | Rows) -> Rows:
        """Logits float32 `[n, vocab]` after every position of ids and embedding rows."""


_MEMORY = Path("/proc/meminfo")
_FLOAT_BYTES, _SPARE = 4, 1.1  # of float32; and what else a tenth of it holds
OpenLlm = Callable[[Path], AbstractContextManager[LogitsSource]]


@dataclass(frozen=True)
class _Found:
    """What the graph gave for one clip."""

    outputs: Mapping[str, Any]
    rounds: Sequence[npt.NDArray[np.int32]]  # of k-means: the codes before they are put in order


class _Deployed:
    """The exported encoder in ONNX Runtime, made to tell every round of k-means."""

    def __init__(self, path: Path, config: ModelConfig) -> None:
        model = onnx.load(str(path))
        ensure_function(model)
        searches = [node for node in model.graph.node if node.op_type == OP_NAME]
        shown = 0 if noted_reducer(model) else rounds_of(config) + 1
        self.rounds = [node.output[0] for node in searches[:shown]]
        self.outputs = outputs_of(config)
        for name in self.rounds:
            model.graph.output.add(name=name)
        with light_copy(model) as copy:
            self.session = copy.session()
        fixed = [config.quantizer.codes, config.quantizer.default_budget]
        self.budgets = fixed if adaptive_error_of(model) is None else [*fixed, ADAPTIVE]

    def run(self, frames: npt.NDArray[np.uint8], budget: int, text: Rows | None) -> _Found:
        """Encode one clip."""
        feeds = feeds_for(self.session, frames, budget, text)
        values = self.session.run([*self.outputs, *self.rounds], feeds)
        count = len(self.outputs)
        return _Found(dict(zip(self.outputs, values[:count], strict=True)), values[count:])


@dataclass
class _Patches:
    """What was seen of the patches of all clips."""

    differ: list[npt.NDArray[np.bool_]] = field(default_factory=list)
    margins_there: list[float] = field(default_factory=lambda: [0.0])
    margin_gaps: list[float] = field(default_factory=lambda: [0.0])
    cosines: list[float] = field(default_factory=list)

    def add(self, found: _Found, wanted: EncodedClip, rounds: list[Assignment]) -> bool:
        """Count a clip; is every patch the same?

        Every round of k-means moves the codes, so that one close call in one round turns safe
        choices in later ones: only the first round that differs has a say in margins.
        """
        differs = found.outputs["index_map"] != wanted.index_map.numpy()
        margin, mask = wanted.margin.numpy(), found.outputs["mask"]
        self.differ.append(differs)
        turns = [
            ids != there.indices.numpy() for ids, there in zip(found.rounds, rounds, strict=True)
        ]
        turned = next((place for place, turn in enumerate(turns) if turn.any()), None)
        there = margin[differs] if turned is None else rounds[turned].margin.numpy()[turns[turned]]
        self.margins_there += there.tolist()
        gap = np.abs(found.outputs["margin"] - margin)[~differs].max(initial=0.0)
        self.margin_gaps.append(float(gap))
        if differs.any():
            return False
        read = found.outputs.get(ROW_MASK, mask)
        tokens = found.outputs["tokens"][read], wanted.tokens.numpy()[read]
        self.cosines += row_cosines(*tokens).tolist()
        return True

    def figures(self) -> EncoderParity:
        """The figures over all clips."""
        patches = sum(part.size for part in self.differ)
        safe = sum(margin > SAFE_MARGIN for margin in self.margins_there)
        return EncoderParity(
            clips=len(self.differ),
            patches=patches,
            ids_differ=float(sum(part.sum() for part in self.differ)) / patches,
            safe_ids_differ=safe / patches,
            margin_where_ids_differ=max(self.margins_there),
            margin_difference=max(self.margin_gaps),
            token_cosine=min(self.cosines, default=0.0),
        )


@dataclass
class _Ids:
    """What was seen of the ids of a learned codebook."""

    ids: int = 0
    differ: int = 0
    margins_there: list[float] = field(default_factory=lambda: [0.0])

    def add(self, found: npt.NDArray[np.int32], wanted: Choice) -> None:
        """Count a clip's rows; of each, only the first level that differs has a say in margins."""
        differs = found != wanted.ids.numpy()
        self.ids += differs.size
        self.differ += int(differs.sum())
        rows = differs.any(axis=1)
        first = differs.argmax(axis=1)[rows]
        self.margins_there += wanted.margin.numpy()[rows, first].tolist()

    def figures(self) -> CodebookParity:
        """The figures over all clips."""
        safe = sum(margin > SAFE_MARGIN for margin in self.margins_there)
        return CodebookParity(
            ids=self.ids,
            ids_differ=self.differ / max(self.ids, 1),
            safe_ids_differ=safe / max(self.ids, 1),
            margin_where_ids_differ=max(self.margins_there),
        )


@dataclass(frozen=True)
class EncoderComparison:
    """PyTorch and ONNX Runtime on the same clips, and ONNX Runtime's token rows of each."""

    encoder: EncoderParity
    codebook: CodebookParity | None
    rows: list[Rows]


@torch.inference_mode()
def encoder_parity(checkpoint: Checkpoint, onnx_path: Path, clips: int) -> EncoderComparison:
    """Run PyTorch and ONNX Runtime on generated clips; the graph's budgets take turns."""
    encoder, config = checkpoint.encoder(), checkpoint.config
    quantizer, codebook = encoder.quantizer.quantizer, encoder.bridge.codebook
    deployed = _Deployed(onnx_path, config)
    patches, ids, rows = _Patches(), _Ids(), []
    for index in range(clips):
        budget = deployed.budgets[index % len(deployed.budgets)]
        frames, text = generated_clip(index, config), _generated_text(index, config)
        found = deployed.run(frames, budget, text)
        features = encoder.quantizer.patches(torch.from_numpy(frames))
        quantized, rounds = _quantized(quantizer, features, torch.tensor(budget), text)
        same = patches.add(found, _wanted(encoder, quantized, found), rounds)
        if same and codebook is not None:
            used = quantized.mask
            seen = codebook.seen(quantized.codes[used].half())
            ids.add(found.outputs["ids"][used.numpy()], codebook.chosen(seen))
        read = found.outputs.get(ROW_MASK, found.outputs["mask"])
        rows.append(found.outputs["tokens"][read])
    learned = None if codebook is None else ids.figures()
    return EncoderComparison(patches.figures(), learned, rows)


def _wanted(encoder: VideoEncoder, quantized: Quantized, found: _Found) -> EncodedClip:
    """A clip as PyTorch encodes it, in the order of codes in which the graph read them.

    The published attention reads an order that may turn with a code's last bit. So where the codes
    are the same but for their rounding to float16, PyTorch makes its rows of the graph's.
    """
    wanted = encoder.encoded(quantized)
    if not isinstance(encoder.bridge, OfficialBridge) or wanted.codes is None:
        return wanted
    codes = torch.from_numpy(found.outputs[CODES])
    if not torch.allclose(codes.float(), wanted.codes.float(), rtol=2**-9, atol=1e-4):
        return wanted
    return wanted._replace(tokens=encoder.bridge.rows(codes, wanted.index_map).tokens)


def _quantized(
    quantizer: KMeansQuantizer | ReducerQuantizer,
    features: torch.Tensor,
    budget: torch.Tensor,
    text: Rows | None,
) -> tuple[Quantized, list[Assignment]]:
    """A clip in codes, and every round of k-means on the way; a reducer tells of none."""
    if isinstance(quantizer, ReducerQuantizer):
        asked = None if text is None else torch.from_numpy(text)
        return quantizer(features, budget, asked), []
    rounds = list(quantizer.rounds(features, budget))
    return quantizer.summarised(features, *rounds[-1]), rounds


def require_memory(gguf: Path) -> None:
    """See that the memory that is free holds a language model in PyTorch, to compare with.

    That is all of it in float32, and the largest tensor once more while it is read.

    Raises:
        ExportError: it does not.
    """
    sizes = [int(tensor.n_elements) for tensor in sound_reader(gguf).tensors]
    need = _SPARE * _FLOAT_BYTES * (sum(sizes) + max(sizes, default=0))
    free = _free_bytes()
    if free is not None and need > free:
        raise ExportError(
            f"{gguf}: to compare it with PyTorch takes about {need / 1e9:.1f} GB of memory, and "
            f"{free / 1e9:.1f} GB are free; --no-check skips that"
        )


def _free_bytes() -> int | None:
    """Memory that can be had, swap included; None where the system does not say."""
    try:
        lines = _MEMORY.read_text(encoding="ascii").splitlines()
        told = dict(line.split(":", 1) for line in lines)
        return sum(int(told[name].split()[0]) << 10 for name in ("MemAvailable", "SwapFree"))
    except (OSError, ValueError, KeyError):
        return None


def llm_parity(
    checkpoint: Checkpoint,
    tokenizer: PromptTokenizer,
    rows: list[Rows],
    gguf: Path,
    open_llm: OpenLlm,
) -> LlmParity:
    """Compare transformers with llama.cpp at every answer token of real prompts."""
    model = checkpoint.llm()
    embed = model.get_input_embeddings()
    agree: list[bool] = []
    divergences: list[float] = []
    prompts = 0
    with open_llm(gguf) as deployed:
        for index, tokens in enumerate(rows):
            for item in _questions(index):
                before, after = tokenizer.before_video, tokenizer.question(item.question)
                answer = tokenizer.answer(item.answer)
                tail = [*after, *answer[:-1]]
                pieces = [
                    embed(torch.tensor(before)),
                    torch.from_numpy(tokens),
                    embed(torch.tensor(tail)),
                ]
                with torch.inference_mode():
                    wanted = model(inputs_embeds=torch.cat(pieces)[None], use_cache=False).logits[0]
                found = deployed.logits(before, tokens, tail)[:, : wanted.shape[1]]
                reference = wanted[-len(answer) :].numpy()
                agree += (reference.argmax(1) == found[-len(answer) :].argmax(1)).tolist()
                divergences += _kl(reference, found[-len(answer) :]).tolist()
                prompts += 1
    return LlmParity(
        prompts=prompts,
        positions=len(agree),
        top1_agreement=float(np.mean(agree)),
        kl_mean=float(np.mean(divergences)),
        kl_max=float(np.max(divergences)),
    )


def generated_clip(index: int, config: ModelConfig) -> npt.NDArray[np.uint8]:
    """A clip that parity is measured on, uint8 `[T, size, size, 3]`."""
    return generated_frames(PARITY_SEED, index, config.encoder.frames, config.encoder.size)


def _generated_text(index: int, config: ModelConfig) -> Rows | None:
    """What stands for a clip's question, about as long as one, where tokens follow it."""
    if not follows_question(config.quantizer.kind):
        return None
    drawn = np.random.default_rng([PARITY_SEED, index, 2]).normal(0.0, 0.1, config.llm.width)
    return drawn.astype(np.float32)


def require(report: ParityReport, tolerance: Tolerance) -> None:
    """Fail loudly when a figure is outside its tolerance.

    Raises:
        ParityError: lists every figure that failed.
    """
    faults = report.faults(tolerance)
    if faults:
        raise ParityError(
            f"the export does not compute what the checkpoint computes: {'; '.join(faults)}; "
            "nothing was written (--no-check writes it all the same)",
            report.model_dump(mode="json"),
        )


def _questions(index: int) -> list[QuestionAnswer]:
    """Two questions about a clip; the kinds take turns."""
    asked = one_question_per_kind(
        scene_from_seed(PARITY_SEED, index), np.random.default_rng([PARITY_SEED, index, 1])
    )
    return [asked[index % len(asked)], asked[(index + 1) % len(asked)]]


def _kl(reference: Rows, found: Rows) -> Doubles:
    """KL(reference || found) per row, in nats."""
    log_p, log_q = log_softmax(reference), log_softmax(found)
    divergence: Doubles = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    return divergence
