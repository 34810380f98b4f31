"""`scripts/measure`: with NAMES no other figures than those, and no exports for others.

It, `scripts/compare` and `scripts/reducers` begin with the index of photos that recipes name.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
INDEXING = ("measure", "compare", "reducers")
FAKE = """#!/bin/sh
echo "$(basename "$0") $*" >>ran
echo "{}"
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The script and what it sources, with commands that only write down how they were called."""
    for folder in ("scripts", ".venv/bin"):
        (tmp_path / folder).mkdir(parents=True)
    for script in INDEXING:
        shutil.copy(SCRIPTS / script, tmp_path / "scripts")
    env = (SCRIPTS / "_env.sh").read_text(encoding="utf-8")
    (tmp_path / "scripts" / "_env.sh").write_text(env + "\nneed_environment() { :; }\n")
    for name in ("vqedge", "python"):
        fake = tmp_path / ".venv" / "bin" / name
        fake.write_text(FAKE)
        fake.chmod(0o755)
    return tmp_path


def measured(clone: Path, names: str | None) -> tuple[list[str], str]:
    """How commands of vqedge were called, their options left out, and what the script says."""
    environment = {**os.environ, "VQEDGE_WHEELS": str(clone / "wheels")}
    environment.pop("NAMES", None)
    if names is not None:
        environment["NAMES"] = names
    script = ["sh", str(clone / "scripts" / "measure")]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, check=False)
    ran = clone / "ran"
    lines = ran.read_text().splitlines() if ran.exists() else []
    ran.unlink(missing_ok=True)
    found = [" ".join(line.split()[1:3]) for line in lines if line.startswith("vqedge ")]
    assert (done.returncode != 0) == ("no figures have this name" in done.stderr), done.stderr
    return found, done.stderr


@pytest.mark.parametrize("name", INDEXING)
def test_the_index_of_photos_is_made_first(clone: Path, name: str) -> None:
    told = {"NAMES": "", "PHOTOS": "caltech", "VQEDGE_WHEELS": str(clone / "wheels")}
    script = ["sh", str(clone / "scripts" / name)]
    subprocess.run(script, env={**os.environ, **told}, capture_output=True, check=True)
    first = (clone / "ran").read_text().splitlines()[0]
    assert first == "python scripts/_photos.py caltech build/photos/index.jsonl"


def test_names_export_what_they_are_measured_on(clone: Path) -> None:
    assert measured(clone, "bench")[0] == ["export models/tiny", "bench -m"]
    words = ["export models/tiny", "export models/tiny-words", "eval --limit", "eval --limit"]
    assert measured(clone, "words words_8")[0] == words
    assert measured(clone, "vqt")[0] == ["export models/tiny", "export models/tiny-words"]
    assert measured(clone, "eval_bundle")[0] == ["export models/tiny", "eval --limit"] * 3
    assert (clone / "docs/measured/words_8.json").read_text() == "{}\n"


def test_without_names_all_that_the_script_lists_is_measured(clone: Path) -> None:
    ran, said = measured(clone, None)
    assert ran.count("export models/tiny") == 3 and ran.count("export models/tiny-words") == 1
    listed = (SCRIPTS / "measure").read_text(encoding="utf-8").split('names="')[1].split('"')[0]
    evaluated = {line.split()[-1] for line in said.splitlines() if "evaluate " in line}
    others = {"words_other", "vqt", "grounding", "memory", "start", "bench"}
    assert evaluated == {*listed.split()} - others


def test_a_misspelt_name_is_told_before_anything_is_measured(clone: Path) -> None:
    ran, said = measured(clone, "photos benhc")
    assert not ran and "vqedge: benhc: no figures have this name" in said
