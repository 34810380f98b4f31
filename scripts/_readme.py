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
    files = sorted(MEASURED.glob("quant_*.json"), reverse=True)
    documents = sorted((json.loads(path.read_text()) for path in files), key=lambda d: -d["llm_mb"])
    rows = [
        f"| {d['quantization']} | {d['llm_mb']:.0f} MB | {d['accuracy']:.1%} "
        f"| {d['top1_agreement']:.1%} | {d['kl_mean']:.4f} |"
        for d in documents
    ]
    checkpoint = _load("eval_checkpoint")
    low, high = checkpoint["interval"]
    return "\n".join(
        [
            f"The PyTorch checkpoint on the first {checkpoint['n']} at the default budget: "
            f"{checkpoint['accuracy']:.1%} [{low:.1%}, {high:.1%}]; exported, on the same:",
            "",
            "| `--llm-quant` | file | accuracy | same top token as PyTorch | mean KL, nats |",
            "|---|---|---|---|---|",
            *rows,
        ]
    )


def _speed(benches: list[dict[str, Any]]) -> str:
    """Every stage on every machine that was measured, one column each."""
    names = [bench["machine"]["processor"] for bench in benches]
    columns = [_stages(bench) for bench in benches]
    rows = [
        f"| {stage} | {' | '.join(f'{column[stage]:.0f}' for column in columns)} |"
        for stage in columns[0]
    ]
    return "\n".join(
        [
            "Milliseconds for one 3-second clip (`vqedge bench`):",
            "",
            f"| stage | {' | '.join(names)} |",
            f"|---|{'---|' * len(benches)}",
            *rows,
            "",
            *(f"- {_machine(bench)}" for bench in benches),
        ]
    )


def _stages(bench: dict[str, Any]) -> dict[str, float]:
    """Milliseconds by what takes them."""
    rows = dict(bench["stages_ms"])
    rows["first token, cold"] = bench["cold_first_token_ms"]
    rows["first token, asked again"] = bench["reask_first_token_ms"]
    unreduced = f"first token, language model alone, all {bench['unreduced_tokens']} patch tokens"
    rows[unreduced] = bench["unreduced_first_token_ms"]
    for name, row in bench["together"].items():
        what = f"{row['prompts']} {name}, {row['prompts']} answers"
        rows[f"{what}, one by one"] = row["one_by_one_ms"]
        rows[f"{what}, side by side"] = row["together_ms"]
    return rows


def _machine(bench: dict[str, Any]) -> str:
    """What was measured on, and what the figures say."""
    machine = bench["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    return (
        f"{machine['processor']}, {machine['usable_cores']} cores; {versions}; "
        f"{bench['backend']['encoder']}, {bench['backend']['llm']}. The language model's first "
        f"token comes {bench['unreduced_over_llm']:.0f} times sooner with {bench['tokens']} tokens "
        f"than with {bench['unreduced_tokens']}; asked again, {bench['unreduced_over_reask']:.0f} "
        f"times sooner. Peak memory {bench['peak_rss_mb']:.0f} MB."
    )


def _load(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((MEASURED / f"{name}.json").read_text(encoding="utf-8"))
    return document


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
