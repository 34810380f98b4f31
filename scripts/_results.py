"""Render docs/results.md from docs/measured; `--write` updates the page and its picture."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from _compared import trained_alike, trained_longer
from _pages import (
    BUDGETS,
    LONG,
    ROOT,
    all_measured,
    asked_of,
    measured,
    points,
    share,
    table,
    write_or_compare,
)
from _unbound import unbound_share

from vqedge.data.suites import suite_items

PAGE, PICTURE = ROOT / "docs" / "results.md", ROOT / "docs" / "results.png"
TEMPLATE = ROOT / "scripts" / "results.template.md"
DEFAULT = "32"
USAGE = ROOT / "models" / "tiny-words" / "metrics.json"


def main(arguments: list[str]) -> int:
    """Compare the page with what the figures give, or write it.

    Returns:
        the exit status.
    """
    if "--write" in arguments:
        draw()
    return write_or_compare(PAGE, page(), arguments)


def page() -> str:
    """The whole page: the template with figures and tables."""
    checkpoint, photos = measured("eval_checkpoint"), measured("photos")
    return TEMPLATE.read_text(encoding="utf-8").format(
        checkpoint_asked=asked_of(checkpoint),
        checkpoint_share=share(checkpoint),
        photos=_by_kind(photos, measured("confirmed_photos")),
        **_real(measured("real")),
        photos_codes=f"{photos['tokens_mean']:.0f}",
        photos_share=share(photos),
        confirmed=_suites([measured(f"budget_{DEFAULT}"), photos, *all_measured("confirmed*")]),
        captions=_captions(all_measured("captions*")),
        **_accuracy(),
        **_shown_less(),
        **trained_alike(measured("compare")),
        **trained_longer(*map(measured, LONG)),
        **_exported(checkpoint),
        **_speed(all_measured("bench_*")),
        **_start(measured("start")),
        **_memory(measured("memory")),
        **_files(measured("vqt"), measured("vqt_words")),
        **_words(),
        grounding=_grounding(measured("grounding")),
        ids=_ids(measured("ids")),
    )


def _start(document: dict[str, Any]) -> dict[str, str]:
    """From the beginning of a process to its first token."""
    heads = ("clip", "beside", "one by one", "times", "decoding", "of all", "of the rest")
    rows = (
        (
            name,
            *(f"{clip[way]['first_token']:,.0f}" for way in ("ahead", "after")),
            f"{clip['after_over_ahead']:.2f}",
            f"{clip['after']['decode']:.0f}",
            *(f"{clip[share]:.0%}" for share in ("decode_share", "decode_share_open")),
        )
        for name, clip in document["clips"].items()
    )
    told = document["machine"]
    return {"start": table(heads, rows), "start_machine": f"{_machine(told)}; {_versions(told)}"}


def _memory(document: dict[str, Any]) -> dict[str, str]:
    """What encoding takes of a short and of a long video."""
    short, long = document["minutes"]
    heads = ("clip", f"MB, {short} minute", f"MB, {long} minutes", "times", "seconds")
    rows = (
        (
            kind,
            *(f"{clip[length]['peak_mb']:.0f}" for length in ("short", "long")),
            f"{clip['ratio']:.2f}",
            f"{clip['long']['seconds']:.0f}",
        )
        for kind, clip in document["clips"].items()
    )
    encoder = next(iter(document["clips"].values()))["long"]["encoder"]
    return {
        "memory": table(heads, rows),
        "memory_frames": document["frames"],
        "memory_segment": f"{document['segment_s']:g}",
        "memory_machine": f"{document['machine']}; {encoder}; {_versions(document)}",
    }


def _real(document: dict[str, Any]) -> dict[str, str]:
    """Real clips, asked with choices."""
    return {
        "real_asked": asked_of(document),
        "real_share": share(document),
        "real_prior": f"{document['prior']:.1%}",
        "real": _by_kind(document),
    }


def _accuracy() -> dict[str, object]:
    """One bundle at every budget, and by kind of question at the default one."""
    documents = {budget: measured(f"budget_{budget}") for budget in BUDGETS}
    usual = documents[DEFAULT]
    rows = (
        (budget, f"{d['tokens_mean']:.1f}", share(d), points(d, usual), f"{d['tokdense']:.2f}")
        for budget, d in documents.items()
    )
    heads = ("`--budget`", "mean tokens", "accuracy", f"points from {DEFAULT}", "TokDense")
    return {
        "bundle": f"{usual['backend']['encoder']}, {usual['backend']['llm']}",
        "asked": asked_of(usual),
        "patches": f"{usual['tokens_before']:,}",
        "frames": usual["frames"],
        "budgets": table(heads, rows),
        "default_budget": DEFAULT,
        "kinds": _by_kind(usual, measured("confirmed")),
    }


def _by_kind(document: dict[str, Any], other: dict[str, Any] | None = None) -> str:
    """Accuracy by kind of question, beside that of another suite with the same kinds."""
    suites = [document] if other is None else [document, other]
    heads = ("accuracy", "n") if other is None else ("accuracy", "n", "to confirm", "n")
    rows = [
        (kind, *(cell for d in suites for cell in _share_and_count(d["by_kind"].get(kind))))
        for kind in document["by_kind"]
    ]
    everything = [cell for d in suites for cell in (f"**{share(d)}**", f"{d['n']:,}")]
    return table(("questions", *heads), [*rows, ("**all**", *everything)])


def _share_and_count(row: dict[str, Any] | None) -> tuple[str, object]:
    return ("", 0) if row is None else (share(row), row["n"])


def _suites(documents: Iterable[dict[str, Any]]) -> str:
    rows = ((d["suite_version"], asked_of(d), share(d)) for d in documents)
    return table(("suite", "asked", "accuracy"), rows)


def _captions(documents: Iterable[dict[str, Any]]) -> str:
    """Descriptions, and what they tell of single things."""
    rows = (
        (
            d["suite_version"],
            d["n"],
            *(share(counted) for counted in (d, d["described"], d["facts"])),
            d["facts"]["n"],
        )
        for d in documents
    )
    return table(("suite", "clips", "exact", "whole", "things", "n"), rows)


def _shown_less() -> dict[str, str]:
    """The suites through a bundle, as they are and shown less."""
    photos, photos_checkpoint = measured("photos"), measured("photos_checkpoint")
    world, checkpoint = measured(f"budget_{DEFAULT}"), measured("eval_checkpoint")
    bindings = measured("bindings")
    photos_kinds = ("first", "sequence", "different", "present", "thing")
    return {
        "baselines": _beside_baselines(
            world, checkpoint, ("direction", "order", "color", "shape", "count")
        ),
        "exist_unbound": f"{unbound_share(suite_items(world['suite'], world['n'])):.1%}",
        "bindings": share(bindings),
        "bindings_asked": asked_of(bindings),
        "photos_asked": asked_of(photos),
        "photos_baselines": _beside_baselines(photos, photos_checkpoint, photos_kinds),
    }


def _beside_baselines(
    bundle: dict[str, Any], checkpoint: dict[str, Any], kinds: Sequence[str]
) -> str:
    """A suite through the bundle; without any video it can be asked in PyTorch only."""
    documents = {
        "VQ": bundle,
        "shuffled frames": bundle["baselines"]["shuffled frames"],
        "blind, in PyTorch": checkpoint["baselines"]["blind"],
    }
    rows = [
        (name, d["n"], share(d), *(share(d["by_kind"][kind], places=0) for kind in kinds))
        for name, d in documents.items()
    ]
    priors = (f"{bundle['by_kind'][kind]['prior']:.0%}" for kind in kinds)
    guessed = ("prior", bundle["n"], f"{bundle['prior']:.1%}", *priors)
    return table(("", "n", "all", *kinds), [*rows, guessed])


def _exported(checkpoint: dict[str, Any]) -> dict[str, str]:
    """What each type of the language model's weights and each encoder costs."""
    quantizations = (
        (
            d["quantization"],
            f"{d['llm_mb']:.0f} MB",
            f"{d['accuracy']:.1%}",
            points(d, checkpoint),
            f"{d['top1_agreement']:.1%}",
            f"{d['kl_mean']:.4f}",
        )
        for d in sorted(all_measured("quant_*"), key=lambda d: -float(d["llm_mb"]))
    )
    encoders = (
        (d["backend"]["encoder"], share(d), points(d, checkpoint))
        for d in map(measured, ("eval_bundle", "encoder_onnxruntime-int8", "encoder_openvino"))
    )
    heads = ("`--llm-quant`", "file", "accuracy", "points from PyTorch")
    return {
        "quantizations": table((*heads, "same top token*", "mean KL*"), quantizations),
        "encoders": table(("encoder", "accuracy", "points from PyTorch"), encoders),
    }


def _speed(benches: list[dict[str, Any]]) -> dict[str, str]:
    """One clip through every encoder that ran, and where the time goes, a row a machine."""
    encoders = list(dict.fromkeys(name for bench in benches for name in bench["encoders"]))
    stages = list(benches[0]["stages_ms"])
    rows = (
        (
            _machine(bench["machine"]),
            *(_milliseconds(bench["encoders"].get(name)) for name in encoders),
            *(f"{bench[f'{when}_first_token_ms']:.0f}" for when in ("cold", "reask")),
            f"{bench['unreduced_over_llm']:.0f} x",
        )
        for bench in benches
    )
    spent = (
        (bench["machine"]["processor"], *(f"{bench['stages_ms'][name]:.0f}" for name in stages))
        for bench in benches
    )
    return {
        "speed": table(("machine", *encoders, "cold", "again", "unreduced"), rows),
        "stages": table(("stage", *stages), spent),
        "versions": "\n".join(map(_ran_with, benches)),
    }


def _milliseconds(encoder: dict[str, Any] | None) -> str:
    """Of an encoder that ran on a machine."""
    return f"{encoder['encode_ms']:.0f}" if encoder and "encode_ms" in encoder else ""


def _machine(told: dict[str, Any]) -> str:
    cores = f"{told['processor']}, {told['usable_cores']} cores"
    return ", ".join([cores, *told.get("instructions", ())])


def _ran_with(bench: dict[str, Any]) -> str:
    told, backend = bench["machine"], bench["backend"]
    return f"- {told['processor']}: {_versions(told)}; {backend['encoder']}, {backend['llm']}."


def _versions(told: dict[str, Any]) -> str:
    return ", ".join(f"{name} {number}" for name, number in told["versions"].items())


def _files(codes: dict[str, Any], ids: dict[str, Any]) -> dict[str, object]:
    """Files of codes and of ids: sizes, and that answers are those of the video."""
    of = {f"codes, {codes['budget']}": codes, f"ids of words, {ids['budget']} codes": ids}
    rows = (
        (
            name,
            clips,
            row["clips"],
            row["same_rows"],
            row["same_answers"],
            *(f"{row['bytes'][size]:,.0f}" for size in ("mean", "max")),
        )
        for name, document in of.items()
        for clips, row in (("held-out", document["held_out"]), ("real", document["real"]))
    )
    bits = (
        (bits, f"{row['bytes_mean']:,.0f}", f"{row['same_answers']} of {row['files']}")
        for bits, row in codes["bits"].items()
    )
    same = ("same rows, bit for bit", "same answers")
    return {
        "files": table(("file of", "clips", "n", *same, "bytes", "at most"), rows),
        "bits": table(("`--bits`", "bytes", "same answers"), bits),
    }


def _words() -> dict[str, str]:
    """Videos as words beside videos as rows, and the codebook that the words are of."""
    words, photos, other = map(measured, ("words", "words_photos", "words_other"))
    embeddings, ids = map(measured, ("words_embeddings", "words_ids"))
    rows = measured("budget_16")
    forms = {
        "rows of VQ-Attention, `--budget 16`": rows,
        "words, `--budget 8`": measured("words_8"),
        "words": words,
    }
    told = (
        (name, f"{d['tokens_mean']:.1f}", share(d), points(d, rows)) for name, d in forms.items()
    )
    used = json.loads(USAGE.read_text(encoding="utf-8"))["codebook"]
    levels = zip(used["usage"], used["dead"], used["perplexity"], strict=True)
    return {
        "words_bundle": f"{words['backend']['encoder']}, {words['backend']['llm']}",
        "words": table(("form", "tokens", "accuracy", "points from rows"), told),
        "words_kinds": _in_a_line(words),
        "words_photos_share": share(photos),
        "words_photos_kinds": _in_a_line(photos),
        "words_forms": f"{ids['n']} questions: as embeddings in {embeddings['backend']['llm']} "
        f"{share(embeddings)}, as ids in {ids['backend']['llm']} {share(ids)}",
        "elsewhere": f"{other['questions']} open questions: vqedge ({other['backend']['llm']}) "
        f"{share(other['ours'])}, {other['other']} from the same ids {share(other['theirs'])}; the "
        f"same text in {other['same_text']:.1%}",
        "usage_codes": f"{used['rows']:,}",
        "usage": table(
            ("level", "entries used", "not met", "perplexity"),
            (
                (number, f"{usage:.1%}", f"{dead:,}", f"{perplexity:,}")
                for number, (usage, dead, perplexity) in enumerate(levels, 1)
            ),
        ),
    }


def _in_a_line(document: dict[str, Any]) -> str:
    return ", ".join(f"{kind} {row['accuracy']:.0%}" for kind, row in document["by_kind"].items())


def _grounding(document: dict[str, Any]) -> str:
    rows = (
        (
            name,
            row["n"],
            *(f"{row[of]:.2f}" for of in ("evidence_iou", "whole_clip_iou", "frames_iou")),
            f"{row['evidence_iou_above_half']:.0%}",
        )
        for name, row in ((name, document[name]) for name in ("all", "answered"))
    )
    heads = ("questions", "n", "evidence", "whole clip", "its frames", "evidence over 0.5")
    return table(heads, rows)


def _ids(document: dict[str, Any]) -> str:
    rows: Iterable[Sequence[object]] = (
        (
            name,
            f"{row['clips_same']} of {row['clips']}",
            f"{row['ids_differ']:.2%}",
            f"{row['maps_differ']:.2%}",
        )
        for name, row in document.items()
    )
    return table(("encoder", "same clips", "other id", "other part of the map"), rows)


def draw() -> None:
    """Accuracy against tokens as a picture."""
    from matplotlib.figure import Figure

    *fixed, adaptive = (measured(f"budget_{budget}") for budget in BUDGETS)
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
