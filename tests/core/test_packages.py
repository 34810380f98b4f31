"""What to install, and with which pip."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from vqedge import packages
from vqedge_runtime.encoders.providers import PROVIDERS
from vqedge_runtime.llm.build_flags import pip_line

OURS = packages._pip_is_ours  # before the fixture of all tests takes its place


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A virtual environment, whose pip is not on the PATH yet."""
    folder = tmp_path / "my env/bin"
    folder.mkdir(parents=True)
    monkeypatch.setattr(packages, "_pip_is_ours", OURS)
    monkeypatch.setattr(sys, "prefix", str(folder.parent))
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/pip")
    return folder


def test_an_environment_that_is_not_active_is_named(
    environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip = f"'{environment}/python' -m pip"
    assert packages.install_line("PIL") == f"{pip} install 'vqedge[viz]'"
    assert packages.reinstall_line("none") == f"{pip} install --force-reinstall 'none'"
    assert pip_line().startswith(f"{pip} uninstall") and f" {pip} install" in pip_line()
    assert PROVIDERS["CUDA"].fix.count(f"{pip} install") == 2
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert packages.pip_command() == pip


def test_an_environment_without_pip_gets_it_or_names_uvs(
    environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "pip_folders", list)
    assert packages.pip_command() == f"VIRTUAL_ENV='{environment.parent}' uv pip"
    python = f"'{environment}/python'"
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "which", lambda _: None)
        assert packages.pip_command() == f"{python} -m ensurepip && {python} -m pip"
    monkeypatch.setattr(sys, "base_prefix", sys.prefix)  # uv finds no environment there
    assert packages.pip_command() == f"{python} -m ensurepip && {python} -m pip"


def test_the_pip_of_an_environment_that_is_active_needs_no_path(
    environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(environment)
    for folder in (environment, tmp_path / "link"):
        monkeypatch.setattr(shutil, "which", lambda _, folder=folder: str(folder / "pip"))
        assert packages.install_line("PIL") == "pip install 'vqedge[viz]'"


def test_of_a_systems_pips_it_is_the_one_of_this_python(
    environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "base_prefix", sys.prefix)
    monkeypatch.setattr(shutil, "which", lambda _: str(environment / "pip"))
    assert packages.pip_command() == f"'{environment}/python' -m pip"


def test_onnx_runtimes_tensorrt_is_the_one_for_its_cuda() -> None:
    """docs/tensorrt.md: Python 3.10 gets an ONNX Runtime for CUDA 12, later ones for 13."""
    cuda = 12 if sys.version_info < (3, 11) else 13
    assert PROVIDERS["TensorRT"].fix.startswith(f"pip install 'tensorrt-cu{cuda}<11' && pip")
