"""What codes and their words still say: small classifiers, trained on the clips of a recipe.

    python tests/bench/probe_codes.py recipes/tiny-words-2.yaml [--clips 1000] [--steps 800]

First every code by itself: a linear probe names what its patches show, from its features and from
what is left of them after quantising. Then every thing of a generated clip, from all of its codes:
how it moves, grows and how large it is, from the token hash as it is and from its words. Clips come
from the recipe's cache (what is missing is encoded first); a fifth of them is held out. Both say
what a language model could learn at best, in seconds where training it takes hours.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from vqedge.commands.frames import read_frames
from vqedge.config import ModelConfig
from vqedge.cores import processor_name, usable_cores
from vqedge.data.clips import UNNAMED
from vqedge.model.checkpoint import clip_quantizer
from vqedge.model.codebook import fit_codebook, normalised
from vqedge.model.nearest_codebook import nearest_codebook
from vqedge.model.token_hash import token_hash
from vqedge.model.word_bridge import WordBridge
from vqedge.progress import Clock
from vqedge.recipe import TrainConfig, read_recipe
from vqedge.training.clips import training_clips
from vqedge.training.dataset import TrainingClips, joint_vocabulary, patch_labels
from vqedge.training.inputs import sources_of

PROPERTIES = ("direction", "size", "speed", "change")  # of a thing, from all of its codes
SET_APART = (*PROPERTIES, "order")  # what no code says by itself
HELD_OUT = 5  # one clip in so many
BATCH = 512
WIDTH = 64  # of the probe of things


class Codes(NamedTuple):
    """Codes of all clips with what they show. M clips, K codes, N patches, G groups of words."""

    codes: Tensor  # float32 [M, K, D]
    indices: Tensor  # int64 [M, N]
    names: Tensor  # int64 [M, K, G]
    things: Tensor  # int64 [M, K], the number in the clip, 0 for none
    groups: dict[str, int]  # how many words each has, in the order of G


def gather(config: TrainConfig, most: int) -> Codes:
    """Codes at the default budget, at most so many clips of each source."""
    accelerator = Accelerator()
    quantizer = clip_quantizer(config.model, config.base).to(accelerator.device)
    entries = config.data.sources
    sources = sources_of(entries, read_frames)
    clips = training_clips(config, entries, sources, quantizer, accelerator, Clock())
    assert clips is not None, "there is no limit of time"
    return _with_names(clips, config.model, most)


def _with_names(clips: TrainingClips, model: ModelConfig, most: int) -> Codes:
    budget, encoder = model.quantizer.default_budget, model.encoder
    vocabulary = joint_vocabulary(clips.sources)
    picks = [pick for pick in clips.in_order() if pick.number < most]
    batch = clips.batch(picks, budget)
    assert batch.indices is not None, "the recipe has a quantizer without weights"
    indices = batch.indices.long()
    labels = patch_labels(
        [clips.clip(pick) for pick in picks], encoder.frames, encoder.grid, vocabulary
    )
    return Codes(
        batch.rows.float(),
        indices,
        labels.code_names(indices, budget),
        labels.code_things(indices, budget),
        {group: len(words) for group, words in vocabulary.items()},
    )


def trained(
    net: nn.Module, inputs: Tensor, names: Tensor, sizes: list[int], steps: int
) -> nn.Module:
    """A classifier of several groups at once; names that are `UNNAMED` teach nothing."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    drawn = torch.Generator().manual_seed(0)
    for _ in range(steps):
        some = torch.randint(len(inputs), (BATCH,), generator=drawn)
        parts = net(inputs[some]).split(sizes, dim=-1)
        losses = [
            F.cross_entropy(part, names[some, group], ignore_index=UNNAMED)
            for group, part in enumerate(parts)
            if bool((names[some, group] != UNNAMED).any())
        ]
        optimizer.zero_grad()
        torch.autograd.backward(torch.stack(losses).mean())
        optimizer.step()
        schedule.step()
    return net.eval()


@torch.no_grad()
def right(
    net: nn.Module, inputs: Tensor, names: Tensor, sizes: Mapping[str, int]
) -> dict[str, float]:
    """Shares of names that are right, by group; the mean over its words, each as important."""
    parts = net(inputs).split(list(sizes.values()), dim=-1)
    shares = {}
    for number, (group, part) in enumerate(zip(sizes, parts, strict=True)):
        wanted, found = names[:, number], part.argmax(dim=-1)
        words = [word for word in range(sizes[group]) if bool((wanted == word).any())]
        hits = [(found[wanted == word] == word).double().mean() for word in words]
        if hits:
            shares[group] = round(float(torch.stack(hits).mean()), 4)
    return shares


def code_table(codes: Codes, steps: int) -> dict[str, dict[str, float]]:
    """Every code by itself, quantised in several ways."""
    numbers = torch.arange(len(codes.codes))[:, None].expand(codes.things.shape)
    named = codes.things > 0
    sizes = {group: size for group, size in codes.groups.items() if group not in SET_APART}
    columns = [list(codes.groups).index(group) for group in sizes]
    rows, names = normalised(codes.codes[named]), codes.names[named][:, columns]
    test = numbers[named] % HELD_OUT == 0

    def probed(inputs: Tensor) -> dict[str, float]:
        torch.manual_seed(0)
        net = nn.Linear(inputs.shape[1], sum(sizes.values()))
        trained(net, inputs[~test], names[~test], list(sizes.values()), steps)
        return right(net, inputs[test], names[test], sizes)

    def learned(width: int) -> Tensor:
        """The features of a projection that was trained with its own probe."""
        torch.manual_seed(0)
        narrow = nn.Linear(rows.shape[1], width, bias=False)
        net = nn.Sequential(
            narrow,
            nn.LayerNorm(width, elementwise_affine=False),
            nn.Linear(width, sum(sizes.values())),
        )
        trained(net, rows[~test], names[~test], list(sizes.values()), steps)
        return normalised(narrow(rows).detach())

    def coded(features: Tensor, levels: int, entries: int, parts: int = 1) -> Tensor:
        """Sums of entries, of each part of the features by itself."""
        return torch.cat(
            [residual(part, levels, entries) for part in features.chunk(parts, dim=1)], dim=1
        )

    def residual(features: Tensor, levels: int, entries: int) -> Tensor:
        left = normalised(features)
        for table in fit_codebook(features[~test], levels, entries):
            left = left - table[nearest_codebook(left, table, "l2")[0].long()]
        return normalised(features) - left

    width, narrow, thin = rows.shape[1], learned(128), learned(64)
    ways: dict[str, Callable[[], Tensor]] = {
        f"{width} features": lambda: rows,
        f"{width} features, 2 levels of 2,048": lambda: coded(rows, 2, 2048),
        f"{width} features, 4 levels of 1,024": lambda: coded(rows, 4, 1024),
        f"{width} features, 2 halves of 2,048": lambda: coded(rows, 1, 2048, 2),
        "128 learned features": lambda: narrow,
        "128 learned features, 1 level of 2,048": lambda: coded(narrow, 1, 2048),
        "128 learned features, 2 levels of 2,048": lambda: coded(narrow, 2, 2048),
        "128 learned features, 2 halves of 2,048": lambda: coded(narrow, 1, 2048, 2),
        "64 learned features, 2 levels of 2,048": lambda: coded(thin, 2, 2048),
    }
    return {name: probed(features()) for name, features in ways.items()}


class ThingProbe(nn.Module):
    """Answers about a thing from a set of its codes, whatever their order and number."""

    def __init__(self, width: int, answers: int) -> None:
        super().__init__()
        self.each = nn.Sequential(
            nn.Linear(width, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH), nn.GELU()
        )
        self.all = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, answers))

    def forward(self, codes: Tensor) -> Tensor:
        """Codes `[B, K, width + 1]`, the last feature 1 where a code is of the thing."""
        mine = codes[..., -1:]
        answers: Tensor = self.all((self.each(codes[..., :-1]) * mine).sum(dim=1))
        return answers


def thing_table(codes: Codes, model: ModelConfig, steps: int) -> dict[str, dict[str, float]]:
    """Every thing from all of its codes: from their token hash, and from the words of it."""
    hashed = token_hash(codes.indices, model.encoder.frames, codes.codes.shape[1])
    words = WordBridge(model).hash_values(hashed)
    said = torch.cat([F.one_hot(value).float() for value in words], dim=-1)
    numbers = torch.arange(len(codes.things))[:, None].expand_as(codes.things)
    clip, thing = torch.unique(torch.stack([numbers, codes.things]).flatten(1), dim=1)
    sizes = {group: codes.groups[group] for group in PROPERTIES}
    columns = [list(codes.groups).index(group) for group in sizes]
    mine = codes.things[clip] == thing[:, None]
    first = mine.long().argmax(dim=1)  # all of its codes have the same names
    names = codes.names[clip, first][:, columns]
    told = (thing > 0) & (names != UNNAMED).any(dim=1)
    clip, mine, names = clip[told], mine[told], names[told]
    test = clip % HELD_OUT == 0

    def probed(features: Tensor) -> dict[str, float]:
        torch.manual_seed(0)
        inputs = torch.cat([features[clip], mine[..., None].float()], dim=-1)
        net = ThingProbe(features.shape[2], sum(sizes.values()))
        trained(net, inputs[~test], names[~test], list(sizes.values()), steps)
        return right(net, inputs[test], names[test], sizes)

    return {"token hash": probed(hashed.features), "words of it": probed(said)}


def main() -> None:
    """Both tables as one JSON document."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--clips", type=int, default=1000, help="of each source, at most")
    parser.add_argument("--steps", type=int, default=800, help="of every probe")
    arguments = parser.parse_args()
    config = read_recipe(arguments.recipe, [])
    codes = gather(config, arguments.clips)
    document: dict[str, Any] = {
        "recipe": arguments.recipe.name,
        "clips": len(codes.codes),
        "codes": int((codes.things > 0).sum()),
        "by code": code_table(codes, arguments.steps),
    }
    if config.model.attention.hash == "tokens":
        document["by thing"] = thing_table(codes, config.model, 2 * arguments.steps)
    document |= {
        "processor": processor_name(),
        "cores": usable_cores(),
        "torch": version("torch"),
    }
    print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
