"""A suite through a checkpoint in PyTorch: a clip's questions together, and one by one.

    python tests/bench/bench_eval.py [CHECKPOINT] [--limit 120] [--suite synthetic]

Both ask the same questions in one process, one by one first. One JSON document: seconds of both,
the ratio, accuracy of both, and how many texts are the same.
"""

from __future__ import annotations

import argparse
import json
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vqedge.commands.baselines import opened_checkpoint
from vqedge.cores import processor_name, usable_cores
from vqedge.data.suites import Item, suite_items
from vqedge.evaluate import evaluate
from vqedge.model import answer
from vqedge.model.answer import CheckpointAnswerer

ROOT = Path(__file__).parents[2]


def measure(answerer: CheckpointAnswerer, items: list[Item], together: int) -> dict[str, Any]:
    """One pass over the questions."""
    answer._TOGETHER = together
    texts: list[str] = []
    began = time.perf_counter()
    report = evaluate(answerer, "bench", items, lambda _item, reply, _hit: texts.append(reply.text))
    seconds = time.perf_counter() - began
    return {"seconds": round(seconds, 1), "accuracy": report.overall.accuracy, "texts": texts}


def main() -> None:
    """Both, and their ratio."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", nargs="?", type=Path, default=ROOT / "models" / "tiny")
    parser.add_argument("--limit", type=int, default=120)
    parser.add_argument("--suite", default="synthetic")
    arguments = parser.parse_args()
    items = suite_items(arguments.suite, arguments.limit, None)
    answerer = opened_checkpoint(arguments.checkpoint)
    next(iter(answerer.replies(items[:1])))
    usual = answer._TOGETHER
    alone, together = measure(answerer, items, 1), measure(answerer, items, usual)
    same = sum(map(str.__eq__, alone.pop("texts"), together.pop("texts")))
    document = {
        "n": len(items),
        "clips": len({item.clip for item in items}),
        "one_by_one": alone,
        f"up_to_{usual}_together": together,
        "times_faster": round(alone["seconds"] / together["seconds"], 2),
        "same_texts": same,
        "machine": f"{processor_name()}, {usable_cores()} cores",
        "versions": {tool: version(tool) for tool in ("torch", "transformers")},
    }
    print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
