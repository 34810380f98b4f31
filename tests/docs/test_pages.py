"""Pages of figures: what they are written from stays whole, and a stale page is told."""

from __future__ import annotations

import json
import re
import subprocess
from copy import deepcopy
from pathlib import Path

import _compared
import _pages
import _readme
import _record
import pytest
from _pages import points, share, table, write_or_compare

from vqedge.data.suites import suite_items, suite_version
from vqedge.evaluate import priors_of

ROOT = Path(__file__).parents[2]


def test_a_table() -> None:
    assert table(("", "n", "share"), [("all", 3, "50%"), ("none", "", "")]) == (
        "| | n | share |\n|---|---|---|\n| all | 3 | 50% |\n| none | | |"
    )


def test_a_share_with_its_interval() -> None:
    document = {"accuracy": 0.9754, "interval": [0.9642, 0.9826]}
    assert share(document) == "97.5% [96.4%, 98.3%]"
    assert share(document, places=0) == "98% [96%, 98%]"


def test_points_from_another_have_the_interval_of_their_difference() -> None:
    ours = {"accuracy": 0.5, "by_clip": {"right": [2, 0, 1, 3], "asked": [3, 3, 3, 3]}}
    theirs = {"accuracy": 1 / 3, "by_clip": {"right": [1, 1, 1, 1], "asked": [3, 3, 3, 3]}}
    assert points(ours, theirs) == "+16.7 [-51.8, +85.1]"
    assert points({"accuracy": 0.5}, theirs) == points(ours, {"accuracy": 1 / 3}) == "+16.7"
    fewer = {"accuracy": 0.5, "by_clip": {"right": [2], "asked": [3]}}
    assert points(fewer, theirs) == "+16.7", "not the same questions"
    assert points({"accuracy": 0.3333}, theirs) == "+0.0"
    assert points(ours, ours) == ""


def test_what_a_type_of_weights_costs_is_kept_with_its_clips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_record, "MEASURED", tmp_path)
    told = {"n": 4, "clips": 2, "accuracy": 0.5, "interval": [0.1, 0.9], "model": {"name": "a"}}
    evaluation = {**told, "by_clip": {"right": [1, 1], "asked": [2, 2]}, "frames": 8}
    llm = {"top1_agreement": 1.0, "kl_mean": 0.0}
    export = {"parity": {"quantization": "F16", "llm": llm}, "files": {"llm.gguf": 2e6}}
    for name, document in {"export": export, "eval": evaluation}.items():
        (tmp_path / name).write_text(json.dumps(document))
    _record.main(["--quant", str(tmp_path / "export"), str(tmp_path / "eval")])
    kept = json.loads((tmp_path / "quant_F16.json").read_text())
    assert kept["by_clip"] == evaluation["by_clip"]
    assert kept == {**kept, **told, "quantization": "F16", "llm_mb": 2.0}


def test_a_stale_page_is_told_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_pages, "ROOT", tmp_path)
    page = tmp_path / "page.md"
    assert write_or_compare(page, "fresh\n", []) == 1 and not page.exists()
    page.write_text("stale\n")
    assert write_or_compare(page, "fresh\n", []) == 1
    assert capsys.readouterr().err.count("page.md: differs from docs/measured") == 2
    assert write_or_compare(page, "fresh\n", ["--write"]) == 0
    assert write_or_compare(page, "fresh\n", []) == 0 and page.read_text() == "fresh\n"


def test_a_figure_of_another_checkpoint_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_pages, "MEASURED", tmp_path)
    monkeypatch.setattr(_pages, "_today", {"tiny": "ab", "tiny-words": "cd"}.__getitem__)

    def write(name: str, sha256: str) -> None:
        document = {"n": 1, "model": {"checkpoint_sha256": sha256}}
        (tmp_path / f"{name}.json").write_text(json.dumps(document))

    for name, sha256 in {"photos": "ab", "words": "cd", "compare": "ef"}.items():
        write(name, sha256)
        assert _pages.measured(name)["n"] == 1
    for name, sha256 in {"photos": "cd", "words_8": "ab"}.items():
        write(name, sha256)
        with pytest.raises(ValueError, match=rf"{name}\.json: is not of models/tiny.* measure it"):
            _pages.measured(name)
    (tmp_path / "photos.json").write_text('{"n": 2}')
    assert _pages.measured("photos") == {"n": 2}, "an older one does not say"


def test_figures_are_of_the_clips_that_pages_name() -> None:
    assert _pages.measured("confirmed_photos")["suite"].startswith("photos-confirm:")
    asked = suite_version(str(ROOT / "tests" / "bench" / "real_clips.jsonl"))
    assert _pages.measured("real")["suite_version"] == asked


def test_a_figure_outlives_the_command_that_fails(tmp_path: Path) -> None:
    text = (ROOT / "scripts" / "_env.sh").read_text(encoding="utf-8")
    keep = re.search(r"^keep\(\).*?^}$", text, flags=re.MULTILINE | re.DOTALL)
    assert keep

    def run(command: str) -> int:
        script = f"set -eu\n{keep[0]}\nkeep figure.json {command}"
        return subprocess.run(["sh", "-c", script], cwd=tmp_path, check=False).returncode

    assert run("printf 'a line\\n{\"n\": 1}\\n'") == 0
    assert (tmp_path / "figure.json").read_text() == '{"n": 1}\n'
    assert run("sh -c 'echo half; exit 1'") == 1
    assert (tmp_path / "figure.json").read_text() == '{"n": 1}\n'


@pytest.mark.parametrize("suite", ["synthetic", "bindings"])
def test_priors_are_told_anew_from_the_questions_alone(
    suite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_record, "MEASURED", tmp_path)
    items = suite_items(suite, 30)
    priors = priors_of(items)
    counts = {kind: sum(item.kind == kind for item in items) for kind in priors}
    report = {
        "n": 30,
        "prior": sum(prior.right for prior in priors.values()) / 30,
        "by_kind": {kind: {"n": n, "prior": priors[kind].right / n} for kind, n in counts.items()},
    }
    version = suite_version(suite)
    fresh = {"suite": suite, **report, "suite_version": version, "baselines": {"x": report}}
    stale = deepcopy(fresh)
    stale["prior"] = stale["by_kind"][items[0].kind]["prior"] = 2.0
    stale["baselines"]["x"]["prior"] = 0.0
    written = {
        "asked": stale,
        "other": {"suite": "mine.jsonl", "prior": 0.1, "n": 1},
        "rows": {"suite": suite, "suite_version": "an older one"},
    }
    for name, document in written.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    _record.main(["--priors"])
    found = {path.stem: json.loads(path.read_text()) for path in tmp_path.iterdir()}
    assert found == written | {"asked": fresh}
    (tmp_path / "asked.json").write_text(json.dumps(stale | {"suite_version": "an older one"}))
    with pytest.raises(ValueError, match=r"asked\.json: asked an older one; measure it again"):
        _record.main(["--priors"])


def test_what_descriptions_weigh_is_told_beside_their_row() -> None:
    without = _pages.measured("compare")
    without["baselines"].pop("captions", None)
    row = without["baselines"]["uniform grid"]
    asked = {**without, "baselines": {**without["baselines"], "captions": row}}
    assert _compared.trained_alike(asked)["choices_told"] == _compared.DESCRIBED
    assert _compared.trained_alike(without)["choices_told"] == ""


def test_what_the_grid_was_taught_is_told_beside_its_row() -> None:
    without = _pages.measured("compare")
    without["baselines"].pop(_compared.GRID_NAMED, None)
    grid = without["baselines"]["uniform grid"]
    named = {**without, "baselines": {**without["baselines"], _compared.GRID_NAMED: grid}}
    told = _compared.trained_alike(named)
    assert f"| {_compared.GRID_NAMED} |" in str(told["parts"])
    assert _compared.GRID_NAMED not in str(told["choices"]) and "=0.1`" in str(told["grid_told"])
    assert "=0.1`" not in str(_compared.trained_alike(without)["grid_told"])
    worse = {**grid, "accuracy": without["prior"] - 0.01}
    below = {**without, "baselines": {"uniform grid": worse}}
    assert "stays below" in _compared.grid_told(below, below["baselines"])
    worse["accuracy"] = without["prior"]
    assert "stays below" not in _compared.grid_told(below, below["baselines"])


def test_the_headline_is_of_two_that_were_trained_alike() -> None:
    vq, grid, curves = map(_pages.measured, _pages.LONG)
    assert [*curves["vq-long"]] == [*curves["grid-long"]]
    headline = _readme._against_a_grid(vq, grid, curves)
    assert f"{vq['accuracy']:.1%} where a token is a cluster" in headline
    assert f"{grid['accuracy']:.1%} where it is the mean" in headline
    assert (vq["suite_version"], vq["n"]) == (grid["suite_version"], grid["n"])
    script = (ROOT / "scripts" / "compare").read_text(encoding="utf-8")
    steps = re.findall(r'longer="optim.steps=(\d+)', script)
    assert [f"{number} steps" for number in steps] == re.findall(r"\d+ steps", headline)
    assert [int(number) for number in steps] == [
        _compared.trained_longer(vq, grid, curves)["long_steps"]
    ]


def test_curves_are_kept_by_the_steps_that_all_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records: list[dict[str, object]] = [
        {"step": 0, "naming": {}},
        {"step": 1, "exact_match": 0.1},
        {"step": 2, "exact_match": 0.2, "validation": {"exact_match": 0.3, "color": 0.4}},
    ]
    stopped = {"step": 1, "validation": {"exact_match": 0.2}}
    for name, more in (("one", []), ("two", [stopped])):
        (tmp_path / name).mkdir()
        lines = "".join(json.dumps(record) + "\n" for record in [*records, *more])
        (tmp_path / name / "metrics.jsonl").write_text(lines)
    monkeypatch.setattr(_record, "MEASURED", tmp_path)
    assert _record.main(["--curves", str(tmp_path / "one"), str(tmp_path / "two")]) == 0
    kept = json.loads((tmp_path / "compare_long_curves.json").read_text())
    assert kept == {"one": {"2": 0.3}, "two": {"2": 0.3}}


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime-int8"])
@pytest.mark.parametrize(
    ("machine", "name"), [("amd-epyc", "EPYC"), ("intel-r-xeon-r-processor", "Xeon")]
)
def test_the_page_on_tensorrt_tells_what_encoders_took(
    backend: str, machine: str, name: str
) -> None:
    bench = json.loads((_pages.MEASURED / f"bench_{machine}.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "tensorrt.md").read_text(encoding="utf-8")
    told = {"openvino": "OpenVINO in bfloat16 |", "onnxruntime-int8": "ONNX Runtime in int8 |"}
    (row,) = (line for line in page.splitlines() if told[backend] in line)
    found = re.search(rf"(\d+) ms on the {name}|on the {name}\*\*[^:]*: (\d+) ms", row)
    assert found and int(found[1] or found[2]) == round(bench["encoders"][backend]["encode_ms"])


def test_the_page_on_tensorrt_tells_what_decoding_takes() -> None:
    clips = list(_pages.measured("start")["clips"].values())[1:]
    page = (ROOT / "docs" / "tensorrt.md").read_text(encoding="utf-8")
    told = page.split("Decoding and preprocessing are")[1].split("\n\n")[0]
    shares = [clip[share] for share in ("decode_share", "decode_share_open") for clip in clips]
    found = [int(number) for number in re.findall(r"(\d+)(?: and| %)", told)]
    assert found == [round(100 * share) for share in shares]
