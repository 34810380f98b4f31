"""What importing costs: nothing heavy before it is used; and what each package offers."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import vqedge
import vqedge_export
import vqedge_runtime
from vqedge.errors import VqedgeError
from vqedge_runtime import llm

BENCH = Path(__file__).parents[1] / "bench"
LIBRARIES = {
    "accelerate",
    "av",
    "gguf",
    "llama_cpp",
    "numpy",
    "onnx",
    "onnxruntime",
    "peft",
    "safetensors",
    "tensorrt",
    "torch",
    "transformers",
}


def libraries_after(statement: str) -> set[str]:
    """Top-level packages among `LIBRARIES` that a fresh interpreter holds after a statement."""
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return LIBRARIES & {name.partition(".")[0] for name in done.stdout.split()}


@pytest.mark.parametrize("module", ["vqedge", "vqedge.cli", "vqedge_runtime", "vqedge_export"])
def test_the_packages_and_the_command_line_load_no_library(module: str) -> None:
    assert libraries_after(f"import {module}") == set()


def test_the_session_loads_no_model_library_before_a_bundle_is_opened() -> None:
    assert libraries_after("from vqedge import VideoQA") == {"numpy", "av"}


def test_the_encoder_loads_onnx_runtime_and_no_onnx() -> None:
    assert libraries_after("import vqedge_runtime.encoders.ort") == {"numpy", "onnxruntime"}


def test_assembling_needs_no_torch() -> None:
    heavy = libraries_after("import vqedge_export.assemble")
    assert heavy == {"gguf", "llama_cpp", "numpy", "onnx", "safetensors"}


def test_printing_a_recipe_needs_no_torch() -> None:
    recipe = str(BENCH.parents[1] / "recipes/world.yaml")
    train = f"from vqedge.cli import app; app(['train', {recipe!r}, '--print-config'], **called)"
    assert libraries_after(f"called = {{'standalone_mode': False}}\n{train}") == {"av", "numpy"}


@pytest.mark.parametrize("path", sorted(BENCH.glob("*.py")), ids=lambda path: path.stem)
def test_what_is_run_by_hand_can_be_imported(path: Path) -> None:
    import_module(path.stem)


def test_the_public_names() -> None:
    assert sorted(vqedge.__all__) == ["DecodingOptions", "VideoQA", "VqedgeError", "__version__"]
    assert sorted(vqedge_runtime.__all__) == [
        "Answer",
        "AnswerStream",
        "Backend",
        "Budget",
        "CodeEvidence",
        "DecodingOptions",
        "Evidence",
        "Exchange",
        "Prefix",
        "Timings",
        "TokenSet",
        "Video",
        "VideoQA",
        "VqedgeError",
    ]
    assert not hasattr(vqedge_export, "__all__"), "its modules are its interface"
    assert sorted(llm.__all__) == [
        "ChoiceScores",
        "DecodingOptions",
        "Exchange",
        "FakeLanguageModel",
        "Generation",
        "LanguageModel",
        "Prefix",
        "Prompt",
        "TextStream",
        "VideoRows",
        "check_choices",
        "open_llama_cpp",
    ]


@pytest.mark.parametrize("package", [vqedge, vqedge_runtime])
def test_public_names_are_there_and_no_others(package: object) -> None:
    for name in package.__all__:  # type: ignore[attr-defined]
        assert getattr(package, name) is vars(package)[name] is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        package.nothing  # type: ignore[attr-defined] # noqa: B018


@pytest.mark.parametrize("package", ["vqedge", "vqedge_runtime"])
def test_public_names_can_be_completed_before_any_is_loaded(package: str) -> None:
    told = f"import {package} as package; assert {{*package.__all__}} <= {{*dir(package)}}"
    assert libraries_after(told) == set()


def test_the_short_way_leads_to_the_same_class() -> None:
    assert vqedge.VideoQA is vqedge_runtime.VideoQA
    assert vqedge.VqedgeError is VqedgeError
