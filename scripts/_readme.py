"""Render the measured figures of README.md; `--write` updates the file."""

from __future__ import annotations

import sys
from typing import Any

from _pages import (
    BUDGETS,
    LONG,
    ROOT,
    all_measured,
    measured,
    points,
    share,
    table,
    write_or_compare,
)

PAGE = ROOT / "README.md"
START, END = "<!-- measured -->", "<!-- /measured -->"


def main(arguments: list[str]) -> int:
    """Compare README.md with what the figures give, or write it.

    Returns:
        the exit status.
    """
    before, rest = PAGE.read_text(encoding="utf-8").split(START)
    fresh = f"{before}{START}\n{block()}\n{END}{rest.split(END)[1]}"
    return write_or_compare(PAGE, fresh, arguments)


def block() -> str:
    """The measured part of the README."""
    return "\n\n".join([_accuracy(), _quants(), _speed(all_measured("bench_*"))])


def _accuracy() -> str:
    bundle, photos = measured(f"budget_{BUDGETS[-1]}"), measured("photos")
    backend = f"{bundle['backend']['encoder']}, {bundle['backend']['llm']}"
    thing = {**photos["by_kind"]["thing"], "tokens_mean": photos["tokens_mean"]}
    asked = {
        "**generated world**": measured("confirmed"),
        "**photos**": measured("confirmed_photos"),
        **{
            f"generated world, development, `--budget {b}`": measured(f"budget_{b}")
            for b in BUDGETS
        },
        "generated world: which colour is which shape's": measured("bindings"),
        "photos, development": photos,
        "photos, development: name the thing": thing,
    }
    rows = (
        (
            name,
            f"{d['n']:,}",
            f"{d['tokens_mean']:.1f}",
            share(d),
            f"{100 * d['accuracy'] / d['tokens_mean']:.2f}",
        )
        for name, d in asked.items()
    )
    return "\n".join(
        [
            f"Exact match with 95 % interval ({backend}), on clips that were never trained on. The "
            "development sets decided how often each kind of question was asked in training; "
            "nothing was decided by the clips of the first two rows "
            "([how far](docs/results.md#other-seeds)):",
            "",
            table(("questions", "n", "tokens of 2,048", "accuracy", "TokDense"), rows),
            "",
            "TokDense is percent of accuracy per token.",
            "",
            _against_a_grid(*map(measured, LONG)),
        ]
    )


def _against_a_grid(
    vq: dict[str, Any], grid: dict[str, Any], curves: dict[str, dict[str, float]]
) -> str:
    """Codes of things against a grid that had the same lessons and steps."""
    *_, steps = next(iter(curves.values()))
    return (
        f"What clustering is worth, of two models trained alike for {steps} steps: "
        f"{vq['accuracy']:.1%} where a token is a cluster of similar patches, "
        f"{grid['accuracy']:.1%} where it is the mean of a cell of a uniform grid, a difference of "
        f"{points(vq, grid)} points; the most frequent answers score {vq['prior']:.1%} "
        f"(n={vq['n']:,}, "
        "[more of these](docs/results.md#what-each-part-is-worth))."
    )


def _quants() -> str:
    """Accuracy of every measured type of the language model's weights, largest file first."""
    told = ", ".join(
        f"{d['quantization']} {d['accuracy']:.1%} ({d['llm_mb']:.0f} MB)"
        for d in sorted(all_measured("quant_*"), key=lambda d: -float(d["llm_mb"]))
    )
    checkpoint = measured("eval_checkpoint")
    return (
        f"Exported: {told}; the PyTorch checkpoint, on the same {checkpoint['n']} questions: "
        f"{checkpoint['accuracy']:.1%}."
    )


def _speed(benches: list[dict[str, Any]]) -> str:
    """What users wait for, on every machine that was measured, one column each."""
    names = [
        f"{bench['machine']['processor']}, {bench['machine']['usable_cores']} cores"
        for bench in benches
    ]
    columns = [_waits(bench) for bench in benches]
    rows = ((wait, *(column[wait] for column in columns)) for wait in columns[0])
    return "\n".join(
        [
            "Milliseconds, a clip of three seconds (`vqedge bench`; stages, encoders and versions "
            "are on [the page of results](docs/results.md#speed)):",
            "",
            table(("", *names), rows),
        ]
    )


def _waits(bench: dict[str, Any]) -> dict[str, str]:
    """Milliseconds by what takes them."""
    rows = {
        "from the file to the first token": f"{bench['cold_first_token_ms']:.0f}",
        "another question, to its first token": f"{bench['reask_first_token_ms']:.0f}",
        f"the language model alone, to its first token, with all {bench['unreduced_tokens']:,} "
        "patches": f"{bench['unreduced_first_token_ms']:.0f}, {bench['unreduced_over_llm']:.0f} "
        f"times as long as with {bench['tokens']} tokens",
    }
    for name, row in bench["together"].items():
        rows[f"{row['prompts']} {name}, {row['prompts']} answers"] = (
            f"{row['one_by_one_ms']:.0f} one by one, {row['together_ms']:.0f} side by side"
        )
    rows["peak memory"] = f"{bench['peak_rss_mb']:.0f} MB"
    return rows


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
