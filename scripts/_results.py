"""Render docs/results.md from docs/measured; `--write` updates the page and its picture."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vqedge.commands.baselines import COMPARISONS

ROOT = Path(__file__).parents[1]
MEASURED = ROOT / "docs" / "measured"
PAGE, PICTURE = ROOT / "docs" / "results.md", ROOT / "docs" / "results.png"
BUDGETS = ("8", "16", "32", "64", "auto")
DEFAULT = "32"

INTRODUCTION = """# Results

Written by `scripts/_results.py` from the figures in [measured](measured), which `scripts/measure`
makes; do not edit. Exact match on held-out questions (case, punctuation and articles aside), in
brackets the 95 % Wilson interval, wider by what answers about one clip have in common. The suites
are `vqedge eval --suite synthetic` (the generated world under a seed that is never trained on) and
`--suite photos:INDEX` (clips composed of photos of the test split). TokDense is percent of accuracy
per visual token that the language model reads."""


def main(arguments: list[str]) -> int:
    """Compare the page with what the figures give, or write it.

    Returns:
        the exit status.
    """
    fresh = page()
    if "--write" in arguments:
        PAGE.write_text(fresh, encoding="utf-8")
        draw()
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != fresh:
        sys.stderr.write("docs/results.md: run scripts/_results.py --write\n")
        return 1
    return 0


def page() -> str:
    """The whole page."""
    parts = [
        INTRODUCTION,
        _budgets(),
        _kinds(),
        _baselines(),
        _trained_alike(),
        _export(),
        _encoders(),
        _photos(),
        _speed(),
        _files(),
        _words(),
        _grounding(),
        _ids(),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _budgets() -> str:
    documents = {budget: _load(f"budget_{budget}") for budget in BUDGETS}
    rows = [
        f"| {budget} | {d['tokens_mean']:.1f} | {_share(d)} | {d['tokdense']:.2f} |"
        for budget, d in documents.items()
        if d
    ]
    first = next((d for d in documents.values() if d), None)
    assert first, "no docs/measured/budget_*.json; run scripts/measure"
    backend = f"{first['backend']['encoder']}, {first['backend']['llm']}"
    return "\n".join(
        [
            "## Accuracy against tokens",
            "",
            f"One bundle ({backend}), {_asked(first)}, {first['tokens_before']:,} patches a clip "
            f"of {first['frames']} frames. `auto` takes as many codes as a clip needs.",
            "",
            "![accuracy against tokens](results.png)",
            "",
            "| `--budget` | mean tokens | accuracy | TokDense |",
            "|---|---|---|---|",
            *rows,
        ]
    )


def _kinds() -> str:
    document = _load(f"budget_{DEFAULT}")
    assert document
    lines = [
        "## By kind of question",
        "",
        f"The same bundle and questions, at the default budget of {DEFAULT}.",
        "",
        *_by_kind(document),
    ]
    return "\n".join(lines)


def _by_kind(document: dict[str, Any]) -> list[str]:
    rows = [f"| {k} | {_share(row)} | {row['n']} |" for k, row in document["by_kind"].items()]
    everything = f"| **all** | **{_share(document)}** | {document['n']} |"
    return ["| questions | accuracy | n |", "|---|---|---|", *rows, everything]


def _baselines() -> str:
    reference, photos = _load("eval_checkpoint"), _load("photos_checkpoint")
    if not reference or "baselines" not in reference:
        return ""
    lines = [
        "## What the tokens are worth",
        "",
        "In PyTorch: the model as it is, and shown less (shuffled frames, no video at all). What "
        "the frames' order alone tells is *direction* and *order*, and *first* and *sequence* of "
        "photos; that a thing stands still, or which way or its opposite it moves, frames tell in "
        "any order.",
        "",
        *_shown_less(reference, ("direction", "order", "color", "shape", "count")),
    ]
    if photos:
        lines += ["", *_shown_less(photos, ("first", "sequence", "different", "present", "thing"))]
    return "\n".join(lines)


def _shown_less(reference: dict[str, Any], kinds: Sequence[str]) -> list[str]:
    """One suite with its baselines, a row each."""
    rows = {"VQ": reference, **reference["baselines"]}
    kinds = [kind for kind in kinds if _has(rows, kind)]
    lines = [
        f"{_asked(reference)} ({reference['suite'].partition(':')[0]}):",
        "",
        f"| | steps | tokens | all | {' | '.join(kinds)} |",
        "|---|---|---|---|" + "---|" * len(kinds),
    ]
    for name, d in rows.items():
        by_kind = " | ".join(f"{d['by_kind'][kind]['accuracy']:.1%}" for kind in kinds)
        steps, tokens = d.get("steps", ""), d["tokens_mean"]
        lines.append(f"| {name} | {steps} | {tokens:.1f} | {_share(d)} | {by_kind} |")
    return lines


def _trained_alike() -> str:
    """One short training for the whole model, and again with one part or choice replaced."""
    document = _load("compare")
    if not document:
        return ""
    others = {name: d for name, d in document["baselines"].items() if "steps" in d}
    known = {comparison.name for comparison in COMPARISONS}
    parts = {name: d for name, d in others.items() if name in known}
    choices = {name: d for name, d in others.items() if name not in known}
    lines = [
        "## What each part is worth",
        "",
        f"`scripts/compare`: recipes/compare.yaml, {document['steps']} steps from an untrained "
        "bridge and adapter, and again with one part replaced: the same clips, the same steps, at "
        f"most 32 tokens a clip. {document['n']} held-out questions in PyTorch{_of(document)}. "
        "These trainings are short: the differences say more than the levels.",
        "",
        *_beside(document, parts),
        "",
        f"| | {' | '.join(['VQ', *parts])} | n |",
        "|---|" + "---|" * (len(parts) + 2),
    ]
    for kind, asked in document["by_kind"].items():
        rows = [d["by_kind"][kind] for d in (document, *parts.values())]
        shares = " | ".join(f"{row['accuracy']:.0%}" for row in rows)
        lines.append(f"| {kind} | {shares} | {asked['n']} |")
    if choices:
        lines += [
            "",
            "And with one choice of the recipe replaced:",
            "",
            *_beside(document, choices),
        ]
    return "\n".join(lines)


def _beside(reference: dict[str, Any], others: dict[str, Any]) -> list[str]:
    """Trainings beside the one that they are compared with, a row each."""
    lines = [
        "| | tokens | all | points from VQ |",
        "|---|---|---|---|",
        f"| VQ | {reference['tokens_mean']:.1f} | {_share(reference)} | |",
    ]
    for name, d in others.items():
        points = 100 * (d["accuracy"] - reference["accuracy"])
        lines.append(f"| {name} | {d['tokens_mean']:.1f} | {_share(d)} | {points:+.1f} |")
    return lines


def _of(document: dict[str, Any]) -> str:
    """Which suite was asked, where it is not that of the other figures."""
    current = _load("eval_checkpoint")
    assert current
    asked, usual = (d["suite_version"] for d in (document, current))
    return "" if asked == usual else f" ({asked}, where the other figures are of {usual})"


def _has(rows: dict[str, Any], kind: str) -> bool:
    return all(kind in row["by_kind"] for row in rows.values())


def _export() -> str:
    documents = [json.loads(path.read_text()) for path in sorted(MEASURED.glob("quant_*.json"))]
    checkpoint = _load("eval_checkpoint")
    assert checkpoint
    lines = [
        "## Export",
        "",
        f"{_asked(checkpoint)} at the default budget; PyTorch in float32: {_share(checkpoint)}. "
        "The encoder in float32 and llama.cpp:",
        "",
        "| `--llm-quant` | file | accuracy | points from PyTorch | same top token* | mean KL* |",
        "|---|---|---|---|---|---|",
    ]
    for d in sorted(documents, key=lambda d: -d["llm_mb"]):
        points = 100 * (d["accuracy"] - checkpoint["accuracy"])
        lines.append(
            f"| {d['quantization']} | {d['llm_mb']:.0f} MB | {d['accuracy']:.1%} | {points:+.1f} "
            f"| {d['top1_agreement']:.1%} | {d['kl_mean']:.4f} |"
        )
    lines += ["", "\\* at the tokens of a few dozen answers; KL in nats."]
    return "\n".join(lines)


def _encoders() -> str:
    """The float32 encoder beside those that are faster."""
    found = [_load("eval_bundle"), *map(_load, ("encoder_onnxruntime-int8", "encoder_openvino"))]
    checkpoint = _load("eval_checkpoint")
    assert checkpoint
    lines = [
        "The same with other encoders, the language model in Q8_0:",
        "",
        "| encoder | accuracy | points from PyTorch |",
        "|---|---|---|",
    ]
    for d in filter(None, found):
        points = 100 * (d["accuracy"] - checkpoint["accuracy"])
        lines.append(f"| {d['backend']['encoder']} | {_share(d)} | {points:+.1f} |")
    return "\n".join(lines)


def _photos() -> str:
    document = _load("photos")
    if not document:
        return ""
    lines = [
        "## Photos",
        "",
        "Clips composed of test photos of Caltech-101, through the bundle; `thing` names one of "
        "about a hundred in free text.",
        "",
        *_by_kind(document),
    ]
    return "\n".join(lines)


def _speed() -> str:
    """One clip through every encoder that ran, a row a machine."""
    benches = [json.loads(path.read_text()) for path in sorted(MEASURED.glob("bench*.json"))]
    encoders = list(dict.fromkeys(name for bench in benches for name in bench["encoders"]))
    lines = [
        "## Speed",
        "",
        "`vqedge bench --json`, the demo clip of three seconds, milliseconds, a document of "
        "docs/measured for every machine: encoding with each backend; `cold`, from the file to the "
        "first token with the backend that `auto` takes there; `again`, a second question; and how "
        "many times as long the language model alone takes to its first token with every patch.",
        "",
        f"| machine | {' | '.join(encoders)} | cold | again | unreduced |",
        "|---|" + "---|" * (len(encoders) + 3),
    ]
    for bench in benches:
        spent = [f"{bench['encoders'][name]['encode_ms']:.0f}" for name in encoders]
        firsts = [f"{bench[f'{when}_first_token_ms']:.0f}" for when in ("cold", "reask")]
        unreduced = f"{bench['unreduced_over_llm']:.0f} x"
        told = bench["machine"]
        own = "".join(f", {name}" for name in told.get("instructions", ()))
        machine = f"{told['processor']}, {told['usable_cores']} cores{own}"
        cells = " | ".join([machine, *spent, *firsts, unreduced])
        lines.append(f"| {cells} |")
    return "\n".join([*lines, "", *_stages(benches), "", *map(_versions, benches)])


def _stages(benches: list[dict[str, Any]]) -> list[str]:
    """Where the time of a cold question goes."""
    names = list(benches[0]["stages_ms"])
    lines = [f"| stage | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    for bench in benches:
        spent = " | ".join(f"{bench['stages_ms'][name]:.0f}" for name in names)
        lines.append(f"| {bench['machine']['processor']} | {spent} |")
    return lines


def _versions(bench: dict[str, Any]) -> str:
    told = bench["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in told["versions"].items())
    backend = bench["backend"]
    return f"- {told['processor']}: {versions}; {backend['encoder']}, {backend['llm']}."


def _files() -> str:
    """Files of codes: sizes, and that answers are those of the video."""
    document = _load("vqt")
    if not document:
        return ""
    rows = (("held_out", "held-out"), ("real", "real"))
    lines = [
        "## Files of codes",
        "",
        f"`scripts/_vqt.py`: clips encoded to [.vqt files](vqt-format.md) at {document['budget']} "
        "codes, a question about each asked of the file and of the video.",
        "",
        "| clips | n | same rows, bit for bit | same answers | bytes of a file | with ids |",
        "|---|---|---|---|---|---|",
    ]
    for key, name in rows:
        row = document[key]
        sizes = (row["bytes"][kind]["mean"] for kind in ("file", "file_with_ids"))
        mean, with_ids = (f"{size:,.0f}" for size in sizes)
        lines.append(
            f"| {name} | {row['clips']} | {row['same_rows']} | {row['same_answers']} | {mean} "
            f"| {with_ids} |"
        )
    lines += [
        "",
        "`with ids`: what the file would take with the ids of a learned codebook. With fewer bits "
        "a number, of all these clips:",
        "",
        "| `--bits` | bytes of a file | same answers |",
        "|---|---|---|",
    ]
    for bits, row in document["bits"].items():
        share = f"{row['same_answers']} of {row['files']}"
        lines.append(f"| {bits} | {row['bytes_mean']:,.0f} | {share} |")
    return "\n".join(lines)


def _words() -> str:
    """Videos as words beside videos as rows, and the codebook that the words are of."""
    words, other = _load("words"), _load("words_other")
    if not words or not other:
        return ""
    rows, names = _load("budget_16"), {"words_8": "words, `--budget 8`", "words": "words"}
    assert rows
    told = [("rows of VQ-Attention, `--budget 16`", rows)]
    told += [(name, d) for file, name in names.items() if (d := _load(file))]
    lines = [
        "## Videos as words",
        "",
        "`models/tiny-words` tells a video in [words of the GGUF's vocabulary](video-words.md), "
        "ids of a codebook that mean the same in every video; `models/tiny` in rows that its "
        "attention makes for each clip. The same questions:",
        "",
        "| form | tokens | accuracy | points from rows |",
        "|---|---|---|---|",
    ]
    for name, d in told:
        points = 100 * (d["accuracy"] - rows["accuracy"])
        lines.append(f"| {name} | {d['tokens_mean']:.1f} | {_share(d)} | {points:+.1f} |")
    kinds = ", ".join(f"{k} {row['accuracy']:.0%}" for k, row in words["by_kind"].items())
    lines += ["", f"By kind: {kinds}.", *_words_photos(), "", *_elsewhere(other), "", *_usage()]
    return "\n".join(lines)


def _words_photos() -> list[str]:
    words, rows = _load("words_photos"), _load("photos")
    if not words or not rows:
        return []
    kinds = ", ".join(f"{k} {row['accuracy']:.0%}" for k, row in words["by_kind"].items())
    return [
        "",
        f"Clips composed of photos: words {_share(words)}, rows {_share(rows)} at "
        f"{rows['tokens_mean']:.0f} codes. By kind: {kinds}.",
    ]


def _elsewhere(other: dict[str, Any]) -> list[str]:
    return [
        f"`tests/bench/other_runtime.py`, {other['questions']} open questions: vqedge "
        f"({other['backend']['llm']}) {_share(other['ours'])}, {other['other']} from the same ids "
        f"{_share(other['theirs'])}; the same text in {other['same_text']:.1%}."
    ]


def _usage() -> list[str]:
    """How evenly held-out clips use the entries."""
    used = json.loads((ROOT / "models/tiny-words/metrics.json").read_text())["codebook"]
    levels = zip(used["usage"], used["dead"], used["perplexity"], strict=True)
    return [
        f"The codebook on {used['rows']:,} held-out codes:",
        "",
        "| level | entries used | not met | perplexity |",
        "|---|---|---|---|",
        *(
            f"| {number} | {usage:.1%} | {dead:,} | {perplexity:,} |"
            for number, (usage, dead, perplexity) in enumerate(levels, 1)
        ),
    ]


def _grounding() -> str:
    document = _load("grounding")
    if not document:
        return ""
    lines = [
        "## When",
        "",
        "`scripts/_grounding.py`: what colour is an object that is there for a part of the clip? "
        "The span of the answer's evidence ([how](seeing-tokens.md)) against the time the object "
        "is there: mean intersection over union, beside the whole clip as the answer to every "
        "question, and the frames that show it, the best that eight frames can do.",
        "",
        "| questions | n | evidence | whole clip | its frames | evidence over 0.5 |",
        "|---|---|---|---|---|---|",
    ]
    for name in ("all", "answered"):
        row = document[name]
        lines.append(
            f"| {name} | {row['n']} | {row['evidence_iou']:.2f} | {row['whole_clip_iou']:.2f} "
            f"| {row['frames_iou']:.2f} | {row['evidence_iou_above_half']:.0%} |"
        )
    return "\n".join(lines)


def _ids() -> str:
    document = _load("ids")
    if not document:
        return ""
    lines = [
        "## Ids",
        "",
        "`scripts/_ids.py`: eight generated clips at two budgets against the ids that PyTorch gave "
        "them (tests/golden/ids.json). K-means starts from the farthest patches, so that a small "
        "change of the features starts it elsewhere and numbers move; what is left once codes are "
        "matched is the last column.",
        "",
        "| encoder | same clips | other id | other part of the map |",
        "|---|---|---|---|",
    ]
    for name, row in document.items():
        lines.append(
            f"| {name} | {row['clips_same']} of {row['clips']} | {row['ids_differ']:.2%} "
            f"| {row['maps_differ']:.2%} |"
        )
    return "\n".join(lines)


def _asked(document: dict[str, Any]) -> str:
    return f"{document['n']:,} questions about {document['clips']} clips"


def _share(document: dict[str, Any]) -> str:
    low, high = document["interval"]
    return f"{document['accuracy']:.1%} [{low:.1%}, {high:.1%}]"


def draw() -> None:
    """Accuracy against tokens as a picture."""
    from matplotlib.figure import Figure

    documents = [d for d in map(_load, (f"budget_{budget}" for budget in BUDGETS)) if d]
    fixed, adaptive = documents[:-1], documents[-1]
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    tokens = [d["tokens_mean"] for d in fixed]
    low, high = zip(*(d["interval"] for d in fixed), strict=True)
    axes.plot(tokens, [d["accuracy"] for d in fixed], "o-", label="fixed budget")
    axes.fill_between(tokens, low, high, alpha=0.2, linewidth=0)
    axes.plot(adaptive["tokens_mean"], adaptive["accuracy"], "D", label="adaptive budget")
    axes.set_xscale("log", base=2)
    axes.set_xlabel("tokens that the language model reads")
    axes.set_ylabel("exact match")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(PICTURE, dpi=110)


def _load(name: str) -> dict[str, Any] | None:
    path = MEASURED / f"{name}.json"
    document: dict[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
    return document


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
