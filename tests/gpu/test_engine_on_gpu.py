"""An engine built here and run here, each in a new process. Not run yet: no GPU was at hand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vqedge.cuda import Cuda
from vqedge.engines import FLAVOURS, Flavour
from vqedge.errors import BackendUnavailable
from vqedge_export.tensorrt.build import offer_of

pytestmark = [pytest.mark.gpu, pytest.mark.tensorrt]


def _vqedge(*words: str) -> dict[str, Any]:
    """The JSON that a command prints, run in a new process."""
    command = [sys.executable, "-m", "vqedge", *words, "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return document


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_two_new_processes_find_the_same_ids(
    request: pytest.FixtureRequest, flavour: Flavour, precision: str
) -> None:
    try:
        capability, offer = Cuda().compute_capability, offer_of(flavour)
    except BackendUnavailable as error:  # not installed; one that dies on loading is a failure
        pytest.skip(str(error))
    if flavour == "tensorrt-rtx" and capability not in offer.capabilities:
        pytest.skip(f"TensorRT-RTX {offer.version} does not build for SM {capability}")
    bundle: Path = request.getfixturevalue("bundle_copy")
    target = ["--target", flavour, "--precision", precision, "--sm", capability.replace(".", "")]
    _vqedge("build", str(bundle), *target)
    check = ("check", str(bundle), "--backend", flavour, "--limit", "64")
    first, again = (_vqedge(*check)["parity"]["backends"][flavour] for _ in range(2))
    print(first)
    assert first["answers"]["clips"] >= 7, "of fewer, no loss can be told"
    assert first == again, "build, serialise, deserialise twice: the same figures to the last bit"
    if precision == "fp32":
        assert first["maps_differ"] < 0.01  # others are held to what `check` allows
