"""The learned codebook of all videos: a code becomes the sum of one entry of each level.

Clustering stays that of the clip; its centroids are then coded by residual tables, so that an id
means the same in every video. VQ-Attention normalises every code before it reads it, so length and
mean of a code say nothing: rows are normalised first, and no entry is spent on them. Nor on most of
what else a backbone sees, if a projection to a few features was learned first (the factorised codes
of ViT-VQGAN, arXiv 2110.04627; docs/experiments.md has what that is worth here).

Training steps run in vector-quantize-pytorch, on the tables that are kept here; everything else
runs the plain twin, in which a level is one NearestCodebook.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from vqedge.config import ModelConfig
from vqedge.model.nearest_codebook import nearest_codebook
from vqedge.model.quantizer import farthest_first

UNUSED = -1  # the ids of a row without a code
_USAGE_DECAY = 0.99
_DEAD = 0.01  # smoothed picks a step; an entry that nobody picks gets there after 460 steps
_INIT_STD = 0.1
_GROUPING_ROUNDS = 20  # of k-means
_CHUNK = 8192  # rows compared with a table at a time


class Coded(NamedTuple):
    """A batch of codes in terms of the codebook."""

    codes: Tensor  # float32 [B, K, width], sums of entries, zero where unused
    ids: Tensor  # int32 [B, K, levels], UNUSED where unused
    commitment: Tensor  # float32 scalar, mean squared distance of entries to what they stand for


class Choice(NamedTuple):
    """One entry of each level for every row."""

    sums: Tensor  # float32 [N, D]
    ids: Tensor  # int32 [N, levels]
    margin: Tensor  # float32 [N, levels], by how much the second best entry is farther, as error
    error: Tensor  # float32 [N, levels], mean squared distance after each level


class ResidualCodebook(nn.Module):
    """Tables of entries that are added up, level by level.

    Args:
        levels: entries in a sum.
        entries: of each level.
        width: D of the codes.
        narrow: features that are compared, if fewer.
    """

    def __init__(self, levels: int, entries: int, width: int, narrow: int | None = None) -> None:
        super().__init__()
        self.usage: Tensor
        self.narrow = nn.Linear(width, narrow, bias=False) if narrow else None
        self.width = narrow or width
        self.tables = nn.Parameter(torch.randn(levels, entries, self.width) * _INIT_STD)
        self.register_buffer("usage", torch.ones(levels, entries), persistent=False)
        self.learner = _learner(levels, entries, self.width)

    def forward(self, codes: Tensor, mask: Tensor) -> Coded:
        """Code a batch; rows outside of the mask influence nothing.

        In training mode, with gradients on, entries that are hardly used are replaced too: the
        library draws rows of the batch with torch's global random numbers.

        Args:
            codes: float `[B, K, D]`.
            mask: bool `[B, K]`.
        """
        with torch.autocast(codes.device.type, enabled=False):
            rows = self.seen(codes).detach()
            if self.training and torch.is_grad_enabled():
                return self._learned(rows, mask)
            return self._plain(rows, mask)

    def seen(self, codes: Tensor) -> Tensor:
        """What is compared with the tables: codes `[..., D]` to rows `[..., width]`, normalised."""
        with torch.autocast(codes.device.type, enabled=False):
            rows = normalised(codes.float())
            return rows if self.narrow is None else normalised(self.narrow(rows))

    def chosen(self, rows: Tensor) -> Choice:
        """The plain twin on normalised rows `[N, D]`: what is exported."""
        residual, entries, ids, margins, errors = rows, [], [], [], []
        for table in self.tables.unbind():
            index, margin = nearest_codebook(residual, table.detach(), "l2")
            entry = F.embedding(index.long(), table)
            errors.append((residual - entry).square().mean(dim=-1))
            residual = residual - entry.detach()
            entries.append(entry)
            ids.append(index)
            margins.append(margin / rows.shape[1])
        sums = torch.stack(entries).sum(dim=0)
        return Choice(sums, *(torch.stack(part, dim=-1) for part in (ids, margins, errors)))

    def sums(self, ids: Tensor) -> Tensor:
        """Codes of ids int `[K, levels]`, float32 `[K, width]`, zero where they are `UNUSED`."""
        columns = ids.clamp(min=0).long().unbind(dim=1)
        entries = [F.embedding(*pair) for pair in zip(columns, self.tables.unbind(), strict=True)]
        return torch.stack(entries).sum(dim=0) * (ids[:, :1] != UNUSED)

    def _plain(self, rows: Tensor, mask: Tensor) -> Coded:
        choice, used = self.chosen(rows.reshape(-1, rows.shape[2])), mask.reshape(-1, 1)
        share = used.float() / used.sum().clamp(min=1)
        return Coded(
            (choice.sums * used).reshape(rows.shape),
            torch.where(used, choice.ids, UNUSED).reshape(*mask.shape, -1),
            (choice.error * share).sum(dim=0).mean(),
        )

    def _learned(self, rows: Tensor, mask: Tensor) -> Coded:
        """The library's step: it reads our tables, and writes dead entries and usage in place."""
        state = {}
        for level in range(len(self.tables)):
            ours = slice(level, level + 1)
            state[f"layers.{level}._codebook.embed"] = self.tables[ours]
            state[f"layers.{level}._codebook.cluster_size"] = self.usage[ours]
        codes, ids, losses = functional_call(self.learner, state, (rows,), {"mask": mask})
        return Coded(codes, ids.to(torch.int32), losses.mean())


def codebook_from_config(config: ModelConfig) -> ResidualCodebook:
    """The codebook of a model, with tables that are not filled in yet."""
    quantizer = config.quantizer
    return ResidualCodebook(
        quantizer.levels, quantizer.entries, config.encoder.width, quantizer.codebook_width
    )


def normalised(codes: Tensor) -> Tensor:
    """Rows with mean 0 and variance 1, float `[..., D]`; a row of zeros stays one."""
    return F.layer_norm(codes, codes.shape[-1:])


def _learner(levels: int, entries: int, width: int) -> nn.Module:
    """The library's ResidualVQ without tables: they come in with every call.

    Its codes are frozen centroids, so nothing flows back to the input; entries learn by gradient
    (not by moving averages), from the language model's loss and from the commitment loss.
    """
    from vector_quantize_pytorch import ResidualVQ

    learner = ResidualVQ(
        dim=width,
        num_quantizers=levels,
        codebook_size=entries,
        learnable_codebook=True,
        ema_update=False,
        rotation_trick=False,
        decay=_USAGE_DECAY,
        threshold_ema_dead_code=_DEAD,
    )
    for layer in learner.layers:
        layer._codebook.reset_cluster_size = 1.0  # a new entry has as much time as one at the start
        del layer._codebook.embed
    for module in learner.modules():
        for name, value in list(module.named_buffers(recurse=False)):
            module.register_buffer(name, value, persistent=False)
    return learner


@torch.no_grad()
def fit_codebook(
    codes: Tensor, levels: int, entries: int, *, rounds: int = 10, seed: int = 0
) -> Tensor:
    """Tables to start training from: k-means of codes, then of what each level leaves over.

    Args:
        codes: float `[M, D]`, as in the cache; rows of zeros are unused ones and left out.
        levels: tables to make.
        entries: of each; more than there are rows give entries that nobody picks.
        rounds: of k-means on each level.
        seed: of the rows that k-means starts from. On the CPU the result depends on nothing else.

    Returns:
        float32 `[levels, entries, D]` on the device of the codes, for `ResidualCodebook.tables`.
    """
    generator = torch.Generator().manual_seed(seed)
    residual = normalised(codes[codes.any(dim=1)].float())
    tables = []
    for _ in range(levels):
        order = torch.randperm(len(residual), generator=generator)
        start = order.repeat(-(-entries // len(order)))[:entries]
        table = _kmeans(residual, residual[start.to(codes.device)], rounds)
        residual = residual - table[_nearest(residual, table)]
        tables.append(table)
    return torch.stack(tables)


@torch.no_grad()
def grouped(entries: Tensor, groups: int) -> Tensor:
    """Number of the group of each entry: k-means from the farthest-first start.

    Args:
        entries: float `[E, D]`.
        groups: how many, at most E.

    Returns:
        int64 `[E]`.
    """
    rows = normalised(entries.float())
    start, _errors = farthest_first(rows, groups)
    return _nearest(rows, _kmeans(rows, start, _GROUPING_ROUNDS))


def usage_report(ids: Tensor, entries: int) -> dict[str, Any]:
    """How evenly a codebook is used, for `metrics.json`.

    Args:
        ids: int `[..., levels]`; rows that are `UNUSED` are not counted.
        entries: of each level.

    Returns:
        `rows`, and by level: `usage`, the share of entries that occur; `dead`, how many do not;
        `perplexity`, as how many equally frequent entries they carry information.
    """
    rows = ids.reshape(-1, ids.shape[-1]).long().cpu()
    rows = rows[(rows != UNUSED).all(dim=1)]
    counts = torch.stack([column.bincount(minlength=entries) for column in rows.unbind(dim=1)])
    dead = (counts == 0).sum(dim=1)
    entropy = torch.special.entr(counts.double() / max(len(rows), 1)).sum(dim=1)
    return {
        "rows": len(rows),
        "usage": [round(1 - number / entries, 4) for number in dead.tolist()],
        "dead": dead.tolist(),
        "perplexity": [round(value, 1) for value in entropy.exp().tolist()],
    }


def _kmeans(rows: Tensor, table: Tensor, rounds: int) -> Tensor:
    """Rounds of k-means; an entry without members moves to one of the rows that fit worst."""
    for _ in range(rounds):
        index = _nearest(rows, table)
        misfit = (rows - table[index]).square().sum(dim=1)
        count = torch.zeros(len(table), device=rows.device).index_add(
            0, index, torch.ones_like(misfit)
        )
        sums = torch.zeros_like(table).index_add(0, index, rows)
        table = sums / count.clamp(min=1)[:, None]
        empty = (count == 0).nonzero()[:, 0][: len(rows)]
        table[empty] = rows[misfit.topk(len(empty)).indices]
    return table


def _nearest(rows: Tensor, table: Tensor) -> Tensor:
    """Index of the nearest entry of every row, int64 `[N]`: NearestCodebook without its margin."""
    squares = table.square().sum(dim=1)
    scores = (
        torch.addmm(squares, part, table.T, beta=-1, alpha=2) for part in torch.split(rows, _CHUNK)
    )
    return torch.cat([part.argmax(dim=1) for part in scores])
