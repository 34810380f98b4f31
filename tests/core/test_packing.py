"""Packed questions give the numbers that asking one at a time gives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_model import CODES, CONFIG, random_codes, random_maps, tiny_llm, tiny_tokenizer
from torch import Tensor

from vqedge.data.questions import QuestionAnswer
from vqedge.model.batch import ClipBatch
from vqedge.model.encoder import Bridge
from vqedge.model.llm import hidden_states, with_lora
from vqedge.model.packing import IGNORED, VIDEO_ID, PackedBatch, attention_of, pack
from vqedge.model.trained_reducer import quantized
from vqedge.model.vlm import Scores, VideoLanguageModel, _whole_answers

TOKENIZER = tiny_tokenizer()
ASKED = [
    [QuestionAnswer("shape", "What?", "a star"), QuestionAnswer("count", "How many?", "2")],
    [QuestionAnswer("color", "Which color has it?", "red")],
    [QuestionAnswer("exist", text, "no") for text in ("Is it?", "Is it so?", "Not?")],
]
SEPARATE = [(clip, item) for clip, asked in enumerate(ASKED) for item in asked]


@pytest.fixture(scope="module")
def model() -> VideoLanguageModel:
    torch.manual_seed(1)
    llm: Any = with_lora(tiny_llm(), CONFIG.llm)
    made = VideoLanguageModel(Bridge(CONFIG), llm)
    for name, parameter in made.named_parameters():
        if "lora_B" in name or name == "bridge.attention.scale":  # they start near nothing
            torch.nn.init.normal_(parameter, std=0.5)
    return made.requires_grad_(False).eval()


@pytest.fixture(scope="module")
def clips() -> ClipBatch:
    """Codes and maps; the clips use 5, 2 and 3 codes of 5."""
    maps = torch.cat([random_maps(1, seed, used) for seed, used in ((0, 5), (1, 2), (2, 3))])
    return ClipBatch(random_codes(3), maps, CODES)


@pytest.fixture
def read_logits(model: VideoLanguageModel) -> Iterator[list[Tensor]]:
    """What the output layer gave, call by call."""
    seen: list[Tensor] = []
    head = model.llm.get_output_embeddings()
    handle = head.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    yield seen
    handle.remove()


def one_at_a_time(model: VideoLanguageModel, clips: ClipBatch) -> list[Tensor]:
    """Logits at the answer's tokens, each question alone after the video rows that are in use."""
    tokens, mask, *_ = model.bridge(*quantized(clips, None))
    embed = model.llm.get_input_embeddings()
    found = []
    for clip, item in SEPARATE:
        question, answer = TOKENIZER.question(item.question), TOKENIZER.answer(item.answer)
        rows = torch.cat(
            [
                embed(torch.tensor(TOKENIZER.before_video)),
                tokens[clip][mask[clip]],
                embed(torch.tensor(question + answer[:-1])),
            ]
        )
        logits = model.llm(inputs_embeds=rows[None], use_cache=False).logits[0]
        found.append(logits[-len(answer) :])
    return found


def test_packed_logits_are_those_of_asking_one_at_a_time(
    model: VideoLanguageModel, clips: ClipBatch, read_logits: list[Tensor]
) -> None:
    scores = model(clips, pack(TOKENIZER, ASKED, CODES))
    (packed,) = read_logits
    alone = torch.cat(one_at_a_time(model, clips))
    difference = (packed - alone).abs()
    print(f"max {difference.max():.2e}, mean {difference.mean():.2e}")
    assert alone.std() > 0.1, "nothing to compare"
    assert difference.max() < 1e-5
    targets = [TOKENIZER.answer(item.answer) for _, item in SEPARATE]
    loss = F.cross_entropy(alone, torch.tensor([token for ids in targets for token in ids]))
    torch.testing.assert_close(scores.loss, loss)


def test_a_question_does_not_see_the_others(
    model: VideoLanguageModel, clips: ClipBatch, read_logits: list[Tensor]
) -> None:
    first = ClipBatch(clips.rows[:1], clips.indices[:1], CODES)
    model(first, pack(TOKENIZER, ASKED[:1], CODES))
    others = [QuestionAnswer("shape", "Quite another one?", "square"), ASKED[0][1]]
    model(first, pack(TOKENIZER, [others], CODES))
    answer = len(TOKENIZER.answer("2"))
    torch.testing.assert_close(read_logits[0][-answer:], read_logits[1][-answer:])


def test_padding_does_not_matter(
    model: VideoLanguageModel, clips: ClipBatch, read_logits: list[Tensor]
) -> None:
    model(clips, pack(TOKENIZER, ASKED, CODES))
    model(ClipBatch(clips.rows[1:2], clips.indices[1:2], CODES), pack(TOKENIZER, ASKED[1:2], CODES))
    before = sum(len(TOKENIZER.answer(item.answer)) for item in ASKED[0])
    count = len(TOKENIZER.answer("red"))
    torch.testing.assert_close(read_logits[0][before : before + count], read_logits[1])


def test_a_masked_video_row_has_no_influence(model: VideoLanguageModel) -> None:
    batch = pack(TOKENIZER, ASKED[:1], CODES)
    mask = torch.tensor([[True, False, True, True, False]])
    allowed, positions = attention_of(batch, mask)
    is_video = (batch.ids == VIDEO_ID)[0]
    embeddings = model.llm.get_input_embeddings()(batch.ids.clamp(min=0))
    hidden = hidden_states(model.llm, embeddings, allowed, positions)
    altered = embeddings.clone()
    masked = is_video.nonzero()[:, 0][~mask[0]]
    altered[0, masked] = 5.0
    others = torch.ones_like(is_video).index_fill(0, masked, False)
    found = hidden_states(model.llm, altered, allowed, positions)
    assert torch.equal(found[0, others], hidden[0, others])
    altered[0, is_video] = 5.0  # the rows in use do matter
    found = hidden_states(model.llm, altered, allowed, positions)
    assert (found - hidden)[0, -1].abs().max() > 1e-3


# ---- the layout


def test_a_row_by_hand() -> None:
    batch = pack(TOKENIZER, [[ASKED[0][1], ASKED[1][0]], [ASKED[0][1]]], CODES)
    many, which = TOKENIZER.question("How many?"), TOKENIZER.question("Which color has it?")
    two, red = TOKENIZER.answer("2"), TOKENIZER.answer("red")
    prefix = [*TOKENIZER.before_video, *[VIDEO_ID] * CODES]
    assert batch.ids[0].tolist() == prefix + many + two[:-1] + which + red[:-1]
    nothing = [IGNORED] * (len(many) - 1)
    assert batch.targets[0].tolist() == [
        *[IGNORED] * len(prefix),
        *nothing,
        *two,
        *[IGNORED] * (len(which) - 1),
        *red,
    ]
    lengths = [len(many) + len(two) - 1, len(which) + len(red) - 1]
    segment = [0] * len(prefix) + [1] * lengths[0] + [2] * lengths[1]
    assert batch.segment[0].tolist() == segment
    short = len(prefix) + lengths[0]
    assert batch.segment[1, short:].unique().tolist() == [-1]
    assert batch.targets[1, short:].unique().tolist() == [IGNORED]
    assert batch.question_count == 3


def test_positions_go_on_from_the_prefix_as_if_alone() -> None:
    batch = pack(TOKENIZER, ASKED[:1], CODES)
    mask = torch.tensor([[True, True, False, False, True]])
    _, positions = attention_of(batch, mask)
    prefix = len(TOKENIZER.before_video) + int(mask.sum())
    assert positions[0, : len(TOKENIZER.before_video)].tolist() == [0, 1, 2]
    for number in (1, 2):
        found = positions[0, batch.segment[0] == number].tolist()
        assert found == list(range(prefix, prefix + len(found)))


# ---- whole answers


def _batch(segment: list[list[int]]) -> PackedBatch:
    layout = torch.tensor(segment)
    return PackedBatch(torch.zeros_like(layout), layout, torch.zeros_like(layout))


def test_an_answer_counts_only_if_all_its_tokens_are_right() -> None:
    batch = _batch([[0, 1, 1, 1, 2, 2], [0, 1, 2, 2, 3, -1]])
    wanted = torch.tensor([[0, 0, 1, 1, 1, 1], [0, 1, 0, 1, 1, 0]]).bool()
    #                     row 0: question 1 (2 tokens), 2 (2); row 1: 1, 2, 3 (1 each)
    right = torch.tensor([True, False, True, True, True, False, True])
    assert _whole_answers(right, batch, wanted).tolist() == [False, True, True, False, True]


def test_scores_are_those_of_the_answers(
    model: VideoLanguageModel, clips: ClipBatch, read_logits: list[Tensor]
) -> None:
    """Asked for what the model says anyway, every answer is right; with one wrong token, not."""
    batch = pack(TOKENIZER, ASKED, CODES)
    model(clips, batch)
    said = batch.targets.clone()
    answered = said != IGNORED
    said[answered] = read_logits[0].argmax(dim=-1)
    scores: Scores = model(clips, PackedBatch(batch.ids, batch.segment, said))
    assert scores.correct.tolist() == [True] * len(SEPARATE)
    last_of_clip_1 = answered[1].nonzero()[-1]
    said[1, last_of_clip_1] = (said[1, last_of_clip_1] + 1) % 64
    scores = model(clips, PackedBatch(batch.ids, batch.segment, said))
    assert scores.correct.tolist() == [True, True, False, True, True, True]
