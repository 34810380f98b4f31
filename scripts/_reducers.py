"""Render docs/reducers.md from docs/measured/reducers.json; `--write` updates the page."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from _pages import ROOT, measured, points, share, table, write_or_compare

from vqedge.commands.reducers import OWN
from vqedge.flops import (
    Transformer,
    cross_attended,
    kv_bytes,
    mixture_of_depths,
    prefill,
    staged_dropping,
)

PAGE = ROOT / "docs" / "reducers.md"
TEMPLATE = ROOT / "scripts" / "reducers.template.md"
SMOLLM2 = Transformer(layers=30, width=576, ffn=1536, kv_width=192, vocabulary=49152)
WORDS, PATCHES = 32, 2048
_ENOUGH = 100  # questions
_COSTS = ("error", "PyTorch ms", "ONNX Runtime ms", "ids", "peak MB", "GFLOPs", "prefill")


def main(arguments: list[str]) -> int:
    """Compare the page with what the figures give, or write it.

    Returns:
        the exit status.
    """
    return write_or_compare(PAGE, page(measured("reducers")), arguments)


def page(document: dict[str, Any]) -> str:
    """The whole page: the template with figures."""
    template = TEMPLATE.read_text(encoding="utf-8")
    return template.format(
        facts=_facts(document),
        tables="\n\n".join(_tables(document["rows"])),
        words=WORDS,
        patches=PATCHES,
        rows="\n".join(_not_here()),
    )


def _facts(document: dict[str, Any]) -> str:
    versions = ", ".join(f"{tool} {number}" for tool, number in document["versions"].items())
    few = " So few questions tell costs, not reducers apart." if document["n"] < _ENOUGH else ""
    asked = document.get("suite_version", "world2-seed70001")  # which older documents do not say
    return (
        f"{document['n']} questions about {document['clips']} clips a row "
        f"({document['suite']}, {asked}), "
        f"checkpoint `{document['checkpoint']['name']}` as its training of "
        f"{document['checkpoint']['steps']} steps left it, {document['tokens_before']:,} patches "
        f"of {document['frames']} frames. {document['machine']}; {versions}. Brackets are 95 % "
        f"intervals, as in [results.md](results.md).{_told_apart(document['rows'])}{few}"
    )


def _told_apart(rows: list[dict[str, Any]]) -> str:
    """How to compare rows."""
    if all("by_clip" in row for row in rows):
        return " Rows are told apart by their points from k-means, clip by clip."
    return (
        " All rows are of the same questions, so that two may differ whose intervals overlap; this "
        "document does not say how many were right about each clip."
    )


def _tables(rows: list[dict[str, Any]]) -> Iterator[str]:
    drop_in = [row for row in rows if row["protocol"] == "drop-in"]
    trained = [row for row in rows if row["protocol"] == "trained"]
    yield from _drop_in_tables(drop_in)
    if not trained:
        yield "No checkpoint trained with a reducer was there when this was measured."
        return
    names = dict.fromkeys(row["reducer"] for row in [*drop_in, *trained])
    by_name = {name: [row for row in trained if row["reducer"] == name] for name in names}
    yield from _trained_tables({name: of_name for name, of_name in by_name.items() if of_name})
    yield from _costs_of_others(trained, {row["reducer"] for row in drop_in})


def _drop_in_tables(rows: list[dict[str, Any]]) -> Iterator[str]:
    """One a budget."""
    for budget in _budgets(rows):
        alike = [row for row in rows if row["budget"] == budget]
        reference = _own(alike)
        apart = ("points from k-means",) if reference else ()
        heads = ("reducer", "accuracy", *apart, "tokens", "TokDense", *_COSTS)
        yield f"### {_as_many(budget)}, drop-in"
        yield table(heads, (_drop_in(row, reference) for row in alike))


def _trained_tables(by_name: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    """A row a checkpoint: how much is right at every budget, and points from k-means."""
    trained = [row for of_name in by_name.values() for row in of_name]
    budgets = _budgets(trained)
    yield "### Trained"
    yield table(
        ("reducer", "steps", *map(_as_many, budgets)),
        (_trained(name, of_name, budgets) for name, of_name in by_name.items()),
    )
    references = {budget: _own(trained, budget) for budget in budgets}
    if any(references.values()):
        others = {name: of_name for name, of_name in by_name.items() if name != OWN}
        yield "Points from k-means, as trained:"
        yield table(
            ("reducer", *map(_as_many, budgets)),
            ((name, *_points_by_budget(rows, references)) for name, rows in others.items()),
        )


def _costs_of_others(trained: list[dict[str, Any]], dropped_in: set[str]) -> Iterator[str]:
    """Of those that no table of what is dropped in has."""
    others = [
        row
        for row in trained
        if row["reducer"].partition(" (")[0] not in dropped_in and "torch_ms" in row
    ]
    if others:
        yield "### Costs of those that are trained only"
        yield table(
            ("reducer", "budget", "tokens", *_COSTS),
            (
                (row["reducer"], str(row["budget"]), f"{row['tokens_mean']:.1f}", *_costs(row))
                for row in others
            ),
        )


def _budgets(rows: list[dict[str, Any]]) -> list[int | str]:
    """Those that rows have: numbers, then `auto`."""
    found = {row["budget"] for row in rows}
    return sorted(found, key=lambda budget: (isinstance(budget, str), budget))


def _as_many(budget: int | str) -> str:
    return "As many tokens as needed" if budget == "auto" else f"{budget} tokens"


def _own(rows: list[dict[str, Any]], budget: int | str | None = None) -> dict[str, Any] | None:
    """The row of k-means, if it says how many were right about each clip."""
    of = (row for row in rows if row["reducer"] == OWN and budget in (None, row["budget"]))
    return next((row for row in of if "by_clip" in row), None)


def _points_by_budget(
    rows: list[dict[str, Any]], references: Mapping[int | str, dict[str, Any] | None]
) -> Iterator[str]:
    """Of one checkpoint at every budget that it and k-means have."""
    found = {row["budget"]: row for row in rows}
    for budget, reference in references.items():
        both = reference is not None and budget in found
        yield points(found[budget], reference) if both else ""


def _drop_in(row: dict[str, Any], reference: dict[str, Any] | None) -> tuple[str, ...]:
    return (
        row["reducer"],
        share(row, places=0),
        *((points(row, reference),) if reference else ()),
        f"{row['tokens_mean']:.1f}",
        f"{row['tokdense']:.2f}",
        *_costs(row),
    )


def _costs(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        f"{row['error']:.3f}",
        f"{row['torch_ms']:.0f}",
        f"{row['onnx_ms']:.0f}",
        f"{row['ids_differ']:.2%}",
        "" if row["peak_mb"] is None else f"{row['peak_mb']:.0f}",
        f"{row['reducer_gflops']:.2f}",
        f"{row['prefill_gflops']:.1f}",
    )


def _trained(name: str, rows: list[dict[str, Any]], budgets: list[int | str]) -> tuple[str, ...]:
    """Accuracy of one checkpoint at every budget, with the tokens where they are fewer."""
    shares = {row["budget"]: share(row, places=0) + _fewer(row) for row in rows}
    return (name, str(rows[0]["steps"]), *(shares.get(budget, "") for budget in budgets))


def _fewer(row: dict[str, Any]) -> str:
    spent = round(row["tokens_mean"], 1)
    return "" if spent == row["budget"] else f" at {spent}"


def _not_here() -> Iterator[str]:
    """A prompt of words and all patches, of the tokens that are left, and of methods on paper."""
    model, words, patches = SMOLLM2, WORDS, PATCHES
    stages = [(2, 192), (6, 128), (10, 96), (14, 64)]
    rows = [
        ("all patches", prefill(model, words + patches), words + patches, "nothing: the baseline"),
        ("32 tokens", prefill(model, words + 32), words + 32, "nothing: what vqedge does"),
        (
            "VideoLLM-MoD ([2408.16730](https://arxiv.org/abs/2408.16730)), r = 0.2",
            mixture_of_depths(model, words, patches),
            None,
            "every second layer skips tokens that a learned scorer chooses",
        ),
        (
            "MustDrop's prefill and KV stages, 192 to 64 tokens in layers 2 to 14",
            staged_dropping(model, words, patches, stages),
            words + stages[-1][1],
            "tokens are dropped between layers, and the cache of earlier layers with them",
        ),
        (
            "CrossLMM, 9 tokens a frame, every 4 layers",
            cross_attended(model, words, 72, patches),
            words + 72,
            "cross-attention to all patches inside of the decoder",
        ),
    ]
    for name, flops, kept, why in rows:
        yield f"| {name} | {flops / 1e9:.0f} | {_cache(model, kept)} | {why} |"


def _cache(model: Transformer, tokens: int | None) -> str:
    return (
        "fewer in half of the layers"
        if tokens is None
        else f"{kv_bytes(model, tokens) / 1e6:.1f} MB"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
