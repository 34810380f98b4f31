"""Does the export compute what the checkpoint computes? Measured on generated clips.

Ids are compared as ids: how many patches got another code, and how safe the choice was where they
did. The language model is compared where it matters, at the tokens of real answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import torch

from vqedge.data.questions import QuestionAnswer, one_question_per_kind
from vqedge.data.render import frames_from_scene
from vqedge.data.world import scene_from_seed
from vqedge.errors import ParityError
from vqedge.model.checkpoint import Checkpoint
from vqedge.model.llm import PromptTokenizer
from vqedge_export.report import EncoderParity, LlmParity, ParityReport, Tolerance

PARITY_SEED = 90_001
SAFE_MARGIN = 1e-3

Rows = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


class LogitsSource(Protocol):
    """A loaded GGUF that gives raw logits; the runtime's model is one."""

    def logits(self, *pieces: Sequence[int] | Rows) -> Rows:
        """Logits float32 `[n, vocab]` after every position of ids and embedding rows."""


OpenLlm = Callable[[Path], AbstractContextManager[LogitsSource]]


def encoder_parity(
    checkpoint: Checkpoint, onnx_path: Path, clips: int
) -> tuple[EncoderParity, list[Rows]]:
    """Run PyTorch and ONNX Runtime on generated clips.

    Returns:
        the comparison, and ONNX Runtime's token rows of every clip.
    """
    encoder, config = checkpoint.encoder(), checkpoint.config
    session = ort.InferenceSession(str(onnx_path), providers=["CPUExecutionProvider"])
    budget = config.quantizer.codes
    differing, margins_there, margin_gaps, cosines, rows = 0, [0.0], [0.0], [1.0], []
    for index in range(clips):
        scene = scene_from_seed(PARITY_SEED, index)
        frames = frames_from_scene(scene, config.encoder.frames, config.encoder.size)
        feeds = {"frames": frames, "budget": np.array(budget, np.int64)}
        tokens, ids, mask, margin = session.run(["tokens", "index_map", "mask", "margin"], feeds)
        with torch.inference_mode():
            wanted = encoder(torch.from_numpy(frames), torch.tensor(budget))
        differs = ids != wanted.index_map.numpy()
        differing += int(differs.sum())
        margins_there += wanted.margin.numpy()[differs].tolist()
        margin_gaps.append(float(np.abs(margin - wanted.margin.numpy())[~differs].max(initial=0.0)))
        cosines += _row_cosines(tokens[mask], wanted.tokens.numpy()[mask]).tolist()
        rows.append(tokens[mask])
    patches = clips * config.encoder.patches
    safe = sum(margin > SAFE_MARGIN for margin in margins_there)
    return (
        EncoderParity(
            clips=clips,
            patches=patches,
            ids_differ=differing / patches,
            safe_ids_differ=safe / patches,
            margin_where_ids_differ=max(margins_there),
            margin_difference=max(margin_gaps),
            token_cosine=min(cosines),
        ),
        rows,
    )


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
                found = deployed.logits(before, tokens, tail)
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


def require(report: ParityReport, tolerance: Tolerance) -> None:
    """Fail loudly when a figure is outside its tolerance.

    Raises:
        ParityError: lists every figure that failed.
    """
    faults = report.faults(tolerance)
    if faults:
        raise ParityError(
            f"the export does not compute what the checkpoint computes: {'; '.join(faults)}; "
            "nothing was written (--no-check writes it all the same)"
        )


def _questions(index: int) -> list[QuestionAnswer]:
    """Two questions about a clip; the kinds take turns."""
    asked = one_question_per_kind(
        scene_from_seed(PARITY_SEED, index), np.random.default_rng([PARITY_SEED, index])
    )
    return [asked[index % len(asked)], asked[(index + 1) % len(asked)]]


def _row_cosines(a: Rows, b: Rows) -> Doubles:
    dots = (a.astype(np.float64) * b).sum(axis=1)
    cosines: Doubles = dots / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return cosines


def _kl(reference: Rows, found: Rows) -> Doubles:
    """KL(reference || found) per row, in nats."""
    log_p, log_q = _log_softmax(reference), _log_softmax(found)
    divergence: Doubles = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    return divergence


def _log_softmax(logits: Rows) -> Doubles:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    normalised: Doubles = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return normalised
