"""The published attention, against PyTorch's own decoder run as the published code runs it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hf_maker import order_by_distance
from torch import Tensor, nn

from vqedge.budget import ADAPTIVE
from vqedge.config import AttentionConfig, EncoderConfig, LlmConfig, ModelConfig, QuantizerConfig
from vqedge.model.official import OfficialBridge
from vqedge.model.quantizer import KMeansQuantizer

GRID, WIDTH, MOST = 4, 32, 12
FRAMES = (1, 3, 8, 16)


def config_of(frames: int, kind: str = "official") -> ModelConfig:
    encoder = EncoderConfig(frames=frames, size=GRID * 14, projected=WIDTH)
    return ModelConfig(
        encoder=encoder,
        quantizer=QuantizerConfig(codes=MOST, default_budget=MOST),
        attention=AttentionConfig.model_validate(
            {"kind": kind, "width": WIDTH, "heads": 8, "depth": 1}
        ),
        llm=LlmConfig(width=WIDTH),
    )


class Published(nn.Module):
    """From the description of the published code: PyTorch modules, the published names."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerDecoderLayer(WIDTH, 8)
        self.to_q_proj = nn.Linear(GRID**2, WIDTH)
        self.transformer_decoder = nn.TransformerDecoder(layer, 1)

    def forward(self, index_map: Tensor, clusters: Tensor) -> Tensor:
        """`[T, P]` ids and `[K, D]` means to `[max(T, K), D]`."""
        queries, memory = index_map.float(), clusters
        rows = max(len(queries), len(memory))
        queries = queries.repeat(rows // len(queries) + 1, 1)[:rows]
        memory = memory.repeat(rows // len(memory) + 1, 1)[:rows]
        target = self.to_q_proj(queries)[:, None]  # sequence first, a batch of one
        return self.transformer_decoder(target, memory[:, None])[:, 0]


@pytest.fixture(scope="module")
def published() -> Published:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = Published()
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
    return model.requires_grad_(False).eval()


def official(frames: int, published: Published) -> OfficialBridge:
    bridge = OfficialBridge(config_of(frames))
    newline = torch.linspace(-1, 1, WIDTH)
    state = {f"cross_attention.{name}": value for name, value in published.state_dict().items()}
    bridge.load_state_dict(state | {"image_newline": newline}, strict=True)
    return bridge.requires_grad_(False).eval()


def clip_of(frames: int, used: int) -> tuple[Tensor, Tensor]:
    """Codes float16 `[MOST, D]` of which `used` occur, and an index map in which all of them do."""
    generator = torch.Generator().manual_seed(frames * 100 + used)
    codes = torch.zeros(MOST, WIDTH, dtype=torch.float16)
    codes[:used] = torch.randn(used, WIDTH, generator=generator).half()
    places = torch.arange(frames * GRID**2) % used
    order = torch.randperm(len(places), generator=generator)
    return codes, places[order].reshape(frames, GRID, GRID).to(torch.int32)


@pytest.mark.parametrize("used", [1, 2, 5, 8, MOST])
@pytest.mark.parametrize("frames", FRAMES)
def test_rows_are_those_of_the_published_forward(
    published: Published, frames: int, used: int
) -> None:
    codes, index_map = clip_of(frames, used)
    found = official(frames, published).rows(codes, index_map)
    order = torch.tensor(order_by_distance(codes[:used]))
    numbers = order.argsort()[index_map.reshape(frames, -1).long()]
    wanted = published(numbers, codes[:used].float()[order])
    assert found.row_mask is not None
    count = max(frames, used)
    assert found.row_mask.tolist() == [True] * (count + 1) + [False] * (max(frames, MOST) - count)
    difference = (found.tokens[:count] - wanted).abs()
    print(f"T={frames} K={used}: max {difference.max():.1e}, mean {difference.mean():.1e}")
    assert wanted.std() > 0.1, "nothing to compare"
    assert difference.max() < 2e-5
    assert torch.equal(found.tokens[count], torch.linspace(-1, 1, WIDTH)), "the newline ends it"
    assert not found.tokens[count + 1 :].any()
    assert found.mask.tolist() == [True] * used + [False] * (MOST - used)


def test_what_no_code_fills_has_no_say(published: Published) -> None:
    codes, index_map = clip_of(3, 5)
    bridge = official(3, published)
    wanted = bridge.rows(codes, index_map).tokens
    codes[5:] = 7.0
    assert torch.equal(bridge.rows(codes, index_map).tokens, wanted)


@pytest.mark.parametrize("frames", [3, 16])
def test_how_codes_were_numbered_does_not_matter(published: Published, frames: int) -> None:
    codes, index_map = clip_of(frames, 8)
    bridge = official(frames, published)
    wanted = bridge.rows(codes, index_map).tokens
    order = torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])
    codes[:8] = codes[order]
    found = bridge.rows(codes, order.argsort()[index_map.long()].to(torch.int32)).tokens
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=0)


def test_without_an_attention_the_codes_are_the_rows() -> None:
    bridge = OfficialBridge(config_of(3, "none"))
    bridge.image_newline.data.fill_(2.0)
    codes, index_map = clip_of(3, 5)
    found = bridge.rows(codes, index_map)
    assert found.row_mask is not None
    rows = found.tokens[found.row_mask]
    assert torch.equal(rows[:-1], codes[:5].float())
    assert (rows[-1] == 2.0).all()
    assert set(bridge.state_dict()) == {"image_newline"}


@pytest.mark.parametrize("budget", [3, 8, ADAPTIVE])
def test_codes_are_means_of_features_of_length_one(budget: int) -> None:
    generator = torch.Generator().manual_seed(budget)
    centres = torch.randn(5, WIDTH, generator=generator)
    features = centres[torch.arange(60) % 5] + 0.1 * torch.randn(60, WIDTH, generator=generator)
    features = features * torch.rand(60, 1, generator=generator).add(0.2)
    found = KMeansQuantizer(8, 6, 0.05, unit_means=True)(features, torch.tensor(budget))
    unit = F.normalize(features, dim=1)
    for code in range(int(found.mask.sum())):
        mean = unit[found.indices == code].mean(dim=0)
        torch.testing.assert_close(found.codes[code], mean, atol=1e-6, rtol=0)
    first = [int((found.indices == code).nonzero()[0]) for code in range(int(found.mask.sum()))]
    assert first == sorted(first), "numbered by first occurrence"
    nearest = (unit @ F.normalize(found.codes[found.mask], dim=1).T).argmax(dim=1)
    assert torch.equal(nearest.int(), found.indices), "k-means has settled"
