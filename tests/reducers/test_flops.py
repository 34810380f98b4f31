"""The FLOPs calculator against counts by hand, and one against PyTorch's own counter."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from vqedge.flops import (
    Transformer,
    cross_attended,
    kv_bytes,
    layer,
    mixture_of_depths,
    nearest_codebook,
    prefill,
    staged_dropping,
)
from vqedge.model.reducers.measure import decoder_of, matrix_flops
from vqedge.model.reducers.quantizer import ReducerQuantizer
from vqedge.model.reducers.registry import Sizes, make_reducer

TINY = Transformer(layers=4, width=8, ffn=16, kv_width=4, vocabulary=10)
# one layer on 3 tokens: q, o 8x8 and k, v 8x4: 2*3*(64+64+32+32) = 1152;
# scores and mix 2 * 2*3*3*8 = 288; three matrices 8x16: 2*3*128*3 = 2304
LAYER_3 = 1152 + 288 + 2304


def test_a_layer_by_hand() -> None:
    assert layer(TINY, 3, 3) == LAYER_3 == 3744
    assert layer(TINY, 1, 5) == 2 * 192 + 4 * 5 * 8 + 2 * 128 * 3 == 1312


def test_a_prompt_by_hand() -> None:
    assert prefill(TINY, 3) == 4 * 3744 + 2 * 80 == 15136


def test_a_nearest_codebook_by_hand() -> None:
    assert nearest_codebook(10, 3, 4) == 240


def test_mixture_of_depths_by_hand() -> None:
    """2 words and 10 video tokens; every second of 4 layers keeps 2 of the ten."""
    short = layer(TINY, 4, 4) + 2 * 10 * 8
    assert layer(TINY, 4, 4) == 2 * 4 * 192 + 4 * 16 * 8 + 2 * 4 * 128 * 3 == 5120
    assert layer(TINY, 12, 12) == 4608 + 4608 + 9216 == 18432
    assert mixture_of_depths(TINY, 2, 10) == 2 * short + 2 * 18432 + 160 == 47584
    assert mixture_of_depths(TINY, 2, 10, keep=1.0) == prefill(TINY, 12) + 2 * 160


def test_dropping_in_stages_by_hand() -> None:
    """10 video tokens, from layer 1 on 4, from layer 3 on 1."""
    by_layer = [layer(TINY, 2 + video, 2 + video) for video in (10, 4, 4, 1)]
    assert by_layer == [18432, 8064, 8064, 3744]
    assert staged_dropping(TINY, 2, 10, [(1, 4), (3, 1)]) == sum(by_layer) + 160
    assert staged_dropping(TINY, 2, 10, []) == prefill(TINY, 12)
    assert kv_bytes(TINY, 3) == 2 * 4 * 3 * 4 * 2


def test_cross_attention_by_hand() -> None:
    """One layer of four: queries of 5 rows, keys and values of 20 patches twice, attention."""
    extra = 2 * 5 * 64 + 2 * 2 * 2 * 20 * 64 + 4 * 5 * 20 * 8
    assert extra == 640 + 10240 + 3200
    assert cross_attended(TINY, 2, 3, 20) == prefill(TINY, 5) + extra
    assert cross_attended(TINY, 2, 3, 20, every=2) == prefill(TINY, 5) + 2 * extra


def test_pytorch_counts_the_same_for_a_real_decoder() -> None:
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        attn_implementation="eager",
    )
    llm = LlamaForCausalLM(config).eval()
    sizes = decoder_of(llm)
    assert sizes == Transformer(layers=3, width=32, ffn=48, kv_width=16, vocabulary=50)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        llm(inputs_embeds=torch.zeros(1, 7, 32), logits_to_keep=1)
    rotary = counter.get_total_flops() - prefill(sizes, 7)
    assert 0 <= rotary <= 2 * 7 * 8, "positions times frequencies is all that is left out"


def test_a_reducers_nearest_codebook_is_counted() -> None:
    quantizer = ReducerQuantizer(make_reducer("random-prune", Sizes(4, 2, 4, 8, 8, 4)), 4, 2)
    rows = torch.randn(32, 8, generator=torch.Generator().manual_seed(1))
    found = matrix_flops(lambda: quantizer(rows, torch.tensor(4)))
    gathered, compared = 2 * 32 * 4 * 8, nearest_codebook(32, 4, 8)
    assert found == gathered + compared


def test_fewer_tokens_cost_less() -> None:
    costs = [prefill(TINY, tokens) for tokens in (8, 16, 32, 64)]
    assert costs == sorted(costs)
    assert staged_dropping(TINY, 2, 10, [(1, 4)]) < prefill(TINY, 12)
    assert mixture_of_depths(TINY, 2, 1000) == pytest.approx(0.55 * prefill(TINY, 1002), rel=0.05)
