"""Render the measured figures of README.md; `--write` updates the file."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
MEASURED = ROOT / "docs" / "measured"
START, END = "<!-- measured -->", "<!-- /measured -->"
BUDGETS = ("8", "16", "32", "64", "auto")


def main(arguments: list[str]) -> int:
    """Compare README.md with what the figures give, or write it.

    Returns:
        the exit status.
    """
    if arguments[:1] == ["--quant"]:
        record_quant(*(json.loads(Path(name).read_text()) for name in arguments[1:3]))
        return 0
    if arguments[:1] == ["--bench"]:
        record_bench(json.loads(Path(arguments[1]).read_text()))
        return 0
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    before, rest = text.split(START)
    fresh = f"{before}{START}\n{block()}\n{END}{rest.split(END)[1]}"
    if "--write" in arguments:
        path.write_text(fresh, encoding="utf-8")
    elif fresh != text:
        sys.stderr.write(
            "README.md: figures differ from docs/measured; run scripts/_readme.py --write\n"
        )
        return 1
    return 0


def record_quant(export: dict[str, Any], evaluation: dict[str, Any]) -> None:
    """Keep what one type of weights costs, from the documents of `export` and `eval`."""
    parity = export["parity"]
    document = {
        "quantization": parity["quantization"],
        "llm_mb": export["files"]["llm.gguf"] / 1e6,
        "accuracy": evaluation["accuracy"],
        "n": evaluation["n"],
        "top1_agreement": parity["llm"]["top1_agreement"],
        "kl_mean": parity["llm"]["kl_mean"],
    }
    path = MEASURED / f"quant_{parity['quantization']}.json"
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def record_bench(bench: dict[str, Any]) -> None:
    """Keep what `bench` measured, in a file named after the processor."""
    name = re.sub(r"[^a-z0-9]+", "-", bench["machine"]["processor"].lower()).strip("-")
    path = MEASURED / f"bench_{name}.json"
    path.write_text(json.dumps(bench) + "\n", encoding="utf-8")


def block() -> str:
    """The measured part of the README."""
    paths = sorted(MEASURED.glob("bench_*.json"))
    return "\n\n".join([_accuracy(), _quants(), _speed([_load(path.stem) for path in paths])])


def _accuracy() -> str:
    bundle = _load(f"budget_{BUDGETS[-1]}")
    backend = f"{bundle['backend']['encoder']}, {bundle['backend']['llm']}"
    lines = [
        f"Held-out questions, exact match with 95 % interval ({backend}; n={bundle['n']:,} each):",
        "",
        "| questions | tokens of 2,048 | accuracy | TokDense |",
        "|---|---|---|---|",
    ]
    for budget in BUDGETS:
        lines.append(_row(f"generated world, `--budget {budget}`", _load(f"budget_{budget}")))
    photos = _load("photos")
    lines.append(_row("photos", photos))
    thing = {**photos["by_kind"]["thing"], "tokens_mean": photos["tokens_mean"]}
    lines.append(_row(f"photos: name the thing (n={thing['n']})", thing))
    alike = _load("compare")
    grid = alike["baselines"]["uniform grid"]
    lines += [
        "",
        "TokDense is percent of accuracy per token.",
        "",
        f"Two models trained alike, {alike['steps']} steps: {alike['accuracy']:.1%} with codes of "
        f"patches that are alike, {grid['accuracy']:.1%} with as many means over a uniform grid "
        f"(n={alike['n']}, [more of these](docs/results.md#what-each-part-is-worth)).",
    ]
    return "\n".join(lines)


def _row(name: str, document: dict[str, Any]) -> str:
    low, high = document["interval"]
    tokens = document["tokens_mean"]
    share = f"{document['accuracy']:.1%} [{low:.1%}, {high:.1%}]"
    return f"| {name} | {tokens:.1f} | {share} | {100 * document['accuracy'] / tokens:.2f} |"


def _quants() -> str:
    """Accuracy of every measured type of the language model's weights, largest file first."""
    documents = [json.loads(path.read_text()) for path in MEASURED.glob("quant_*.json")]
    told = ", ".join(
        f"{d['quantization']} {d['accuracy']:.1%} ({d['llm_mb']:.0f} MB)"
        for d in sorted(documents, key=lambda d: -float(d["llm_mb"]))
    )
    checkpoint = _load("eval_checkpoint")
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
    rows = [f"| {wait} | {' | '.join(column[wait] for column in columns)} |" for wait in columns[0]]
    return "\n".join(
        [
            "Milliseconds, a clip of three seconds (`vqedge bench`; stages, encoders and versions "
            "are on [the page of results](docs/results.md#speed)):",
            "",
            f"| | {' | '.join(names)} |",
            f"|---|{'---|' * len(benches)}",
            *rows,
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


def _load(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((MEASURED / f"{name}.json").read_text(encoding="utf-8"))
    return document


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
