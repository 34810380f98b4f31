"""Keep in docs/measured what `scripts/measure` cannot keep as a command prints it.

`--quant EXPORT EVAL` keeps what a type of weights costs, `--bench BENCH` a document a machine,
`--curves FOLDER...` what trainings had of their watched clips, step by step, by their folders.
`--priors` tells anew what the questions of all documents there can be scored blindly, which the
questions alone say.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from _pages import MEASURED

from vqedge.data.suites import SUITES, suite_items, suite_version
from vqedge.evaluate import priors_of

_MADE = SUITES.keys() - {"jsonl", "nextqa"}  # those read videos, which need not be here


def main(arguments: list[str]) -> int:
    """Read the documents named, keep what is told of them.

    Returns:
        the exit status.
    """
    what, *names = arguments
    if what == "--curves":
        record_curves([Path(name) for name in names])
        return 0
    documents = [json.loads(Path(name).read_text(encoding="utf-8")) for name in names]
    record = {"--quant": record_quant, "--bench": record_bench, "--priors": record_priors}
    record[what](*documents)
    return 0


def record_quant(export: dict[str, Any], evaluation: dict[str, Any]) -> None:
    """Keep what one type of weights costs, from the documents of `export` and `eval`."""
    parity = export["parity"]
    document = {
        "quantization": parity["quantization"],
        "llm_mb": export["files"]["llm.gguf"] / 1e6,
        "accuracy": evaluation["accuracy"],
        **{key: evaluation[key] for key in ("interval", "n", "clips", "by_clip", "model")},
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


def record_curves(folders: list[Path]) -> None:
    """Keep the exact match on watched clips at the steps at which all trainings measured it."""
    curves = {folder.name: _watched(folder / "metrics.jsonl") for folder in folders}
    common = set[str].intersection(*(set(curve) for curve in curves.values()))
    kept = {
        name: {step: share for step, share in curve.items() if step in common}
        for name, curve in curves.items()
    }
    path = MEASURED / "compare_long_curves.json"
    path.write_text(json.dumps(kept) + "\n", encoding="utf-8")


def _watched(log: Path) -> dict[str, float]:
    records = map(json.loads, log.read_text(encoding="utf-8").splitlines())
    return {
        str(record["step"]): record["validation"]["exact_match"]
        for record in records
        if "validation" in record
    }


def record_priors() -> None:
    """Count the priors again, of every document whose suite's clips are made.

    Raises:
        ValueError: the suite asks something else by now.
    """
    for path in sorted(MEASURED.glob("*.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        suite = document.get("suite", "")
        if "prior" not in document or suite.partition(":")[0] not in _MADE:
            continue
        if document["suite_version"] != suite_version(suite):
            raise ValueError(f"{path}: asked {document['suite_version']}; measure it again")
        priors = priors_of(suite_items(suite, document["n"]))
        for report in (document, *document.get("baselines", {}).values()):
            report["prior"] = sum(prior.right for prior in priors.values()) / report["n"]
            for kind, row in report["by_kind"].items():
                row["prior"] = priors[kind].right / row["n"]
        path.write_text(json.dumps(document) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
