"""Folders from strangers: whatever is wrong with one is told in one line, and nothing is left."""

from __future__ import annotations

import json
import os
import re
import shlex
import string
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_maker import llava_state, tiny_tokenizer, write_json, write_llava, write_shards
from safetensors.torch import load_file, save_file

from vqedge.base.tensors import TensorFile
from vqedge.base.weights import encoder_weights, origin_of
from vqedge.checkpoint import ORIGIN
from vqedge.config import ModelConfig
from vqedge.errors import CheckpointError, ConfigError, UsageError, VqedgeError
from vqedge.model.checkpoint import open_checkpoint
from vqedge.pickles import conversion_line
from vqedge_export.hf import importing
from vqedge_export.hf.folder import HfFolder
from vqedge_export.hf.importing import checkpoint_from_folder
from vqedge_export.hf.llava import plan_from_llava

INDEX, SHARD = "model.safetensors.index.json", "model-00001-of-00002.safetensors"
Change = Callable[[Path], Any]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_llava(tmp_path / "source")


def refused(source: Path, error: type[VqedgeError] = CheckpointError, **options: Any) -> str:
    """The one line about a folder that is not imported."""
    out = source.parent / "out"
    with pytest.raises(error) as caught:
        checkpoint_from_folder(source, out, **options)
    assert not out.exists()
    assert not list(source.parent.glob(".out*")), "nothing half-made is left"
    line = str(caught.value)
    assert "\n" not in line
    return line


def edit(path: Path, **changes: Any) -> None:
    write_json(path, json.loads(path.read_text()) | changes)


def state_of(source: Path) -> dict[str, torch.Tensor]:
    return llava_state(tiny_tokenizer(source) + 5)


def point_at(name: str) -> Change:
    """An index that says a tensor is in the file `name`."""
    return lambda source: edit(source / INDEX, weight_map={"model.norm.weight": name})


def as_pickle(source: Path) -> None:
    for shard in (INDEX, SHARD, SHARD.replace("1-of", "2-of")):
        (source / shard).unlink()
    (source / "pytorch_model.bin").write_bytes(b"\x80\x04")


def link_shard(source: Path) -> None:
    os.rename(source / SHARD, source.parent / "elsewhere.safetensors")
    (source / SHARD).symlink_to(source.parent / "elsewhere.safetensors")


FOLDERS: dict[str, tuple[Change, str]] = {
    "no config": (lambda s: (s / "config.json").unlink(), "no config.json"),
    "no JSON": (lambda s: (s / "config.json").write_text("{"), "config.json: not JSON"),
    "a list": (lambda s: (s / "config.json").write_text("[1]"), "a JSON list, want an object"),
    "deep": (lambda s: (s / "config.json").write_text("[" * 100_000), "not JSON"),
    "unknown kind": (
        lambda s: edit(s / "config.json", model_type="bert"),
        "'bert' is none of siglip",
    ),
    "hf layout": (
        lambda s: edit(s / "config.json", model_type="llava_onevision"),
        "import the original, lmms-lab/llava-onevision-qwen2-0.5b-ov",
    ),
    "pickle": (as_pickle, "pytorch_model.bin is a pickle"),
    "escape": (point_at("../elsewhere.safetensors"), "is not the name of a file in the folder"),
    "absolute": (point_at("/etc/hosts.safetensors"), "is not the name of a file in the folder"),
    "pickled shard": (point_at("model.bin"), "'model.bin' is not a safetensors file"),
    "missing shard": (point_at("gone.safetensors"), "no gone.safetensors"),
    "no map": (lambda s: edit(s / INDEX, weight_map=[1]), "no weight_map"),
    "numbers": (lambda s: edit(s / INDEX, weight_map={"a": 1}), "no weight_map"),
    "link": (link_shard, "a link; copy the folder with `cp -rL`"),
    "cut": (lambda s: (s / SHARD).write_bytes((s / SHARD).read_bytes()[:999]), "not a readable"),
    "empty": (lambda s: (s / SHARD).write_bytes(b""), "not a readable safetensors file"),
    "no tokenizer": (lambda s: (s / "tokenizer.json").unlink(), "no tokenizer.json"),
    "another tower": (
        lambda s: edit(s / "config.json", vision_config=None),
        "mm_vision_tower 'google/tiny-siglip' is not siglip-so400m-patch14-384",
    ),
    "newline per frame": (
        lambda s: edit(s / "config.json", mm_newline_position="frame"),
        "mm_newline_position is 'frame', want 'one_token'",
    ),
    "no projector": (
        lambda s: edit(s / "config.json", mm_projector_type="linear"),
        "mm_projector_type is 'linear', want 'mlp2x_gelu'",
    ),
    "odd tower": (
        lambda s: edit(s / "config.json", vision_config={"model_type": "siglip", "hidden_size": 7}),
        "heads 12 do not divide width 7",
    ),
    "no number": (
        lambda s: edit(
            s / "config.json", vision_config={"model_type": "siglip", "num_hidden_layers": "x"}
        ),
        "its vision tower: blocks",
    ),
    "other rows": (
        lambda s: edit(s / "config.json", vocab_size=17),
        "model.embed_tokens.weight is BF16 [",
    ),
    "odd activation": (
        lambda s: edit(
            s / "config.json", vision_config={"model_type": "siglip", "hidden_act": "relu"}
        ),
        "an MLP with relu that vqedge does not have",
    ),
    "odd MLP": (
        lambda s: edit(
            s / "config.json", vision_config={"model_type": "siglip", "use_swiglu_ffn": True}
        ),
        "a SwiGLU MLP (use_swiglu_ffn) that vqedge does not have",
    ),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_that_is_wrong(source: Path, name: str) -> None:
    change, message = FOLDERS[name]
    change(source)
    assert message in refused(source)


def run_here(line: str, folder: Path) -> None:
    """A command that a message gives, with this Python for `python`, as a shell runs it."""
    words = [sys.executable if word == "python" else word for word in shlex.split(line)]
    subprocess.run(words, cwd=folder, check=True, timeout=120)


def test_a_pickle_comes_with_the_line_that_converts_it(tmp_path: Path) -> None:
    """Two shards in a folder whose name needs quotes, beside a pickle of other things."""
    source = write_llava(tmp_path / "it's a source")
    wanted = checkpoint_from_folder(source, tmp_path / "safe").path
    state = {}
    for number, name in enumerate((SHARD, SHARD.replace("1-of", "2-of")), 1):
        part = load_file(source / name)
        state |= part
        torch.save(part, source / f"pytorch_model-0000{number}-of-00002.bin")
    for name in (INDEX, SHARD, SHARD.replace("1-of", "2-of")):
        (source / name).unlink()
    torch.save({"rate": 1}, source / "training_args.bin")
    line = refused(source)
    assert "training_args" not in line
    run_here(line.partition("then import the folder again: ")[2], tmp_path)
    assert load_file(source / "model.safetensors").keys() == state.keys()
    found = checkpoint_from_folder(source, tmp_path / "converted").path
    for name in ("encoder.safetensors", "llm.gguf", "model.safetensors"):
        assert (found / name).read_bytes() == (wanted / name).read_bytes()


def test_tensors_that_share_memory_are_converted(tmp_path: Path) -> None:
    both = torch.arange(6.0).reshape(2, 3)
    torch.save({"a": both, "b": both[0], "c": both.T}, tmp_path / "pytorch_model.bin")
    out = tmp_path / "model.safetensors"
    run_here(conversion_line([tmp_path / "pytorch_model.bin"], out), tmp_path)
    found = load_file(out)
    assert torch.equal(found["a"], both) and torch.equal(found["c"], both.T)
    assert torch.equal(found["b"], both[0])


@pytest.mark.parametrize("option", ["block", "size"])
def test_what_a_llava_fixes_is_no_option_of_it(source: Path, option: str) -> None:
    line = refused(source, ConfigError, **{option: 14})
    assert f"--{option}: " in line and "was trained on one block and one size" in line


@pytest.mark.parametrize(
    ("name", "frames", "words"),
    [
        ("resampler", 4, "has weights of its own, which no published model brings"),
        ("none", 4, "choose one of uniform-pool, tpool"),
        ("tome", 1000, "compares all pairs of a clip's 16,000 patches, 1.0 GB a table"),
        ("vtm", 3, "quantizer.codes 64: a clip has 48 patches"),
    ],
)
def test_a_reducer_that_does_not_go_with_it(
    source: Path, name: str, frames: int, words: str
) -> None:
    assert words in refused(source, ConfigError, reducer=name, frames=frames)


def test_every_missing_unknown_and_wrong_tensor_is_named(source: Path) -> None:
    state = state_of(source)
    for name in ("model.norm.weight", "model.mm_projector.2.bias"):
        del state[name]
    state["model.extra"] = torch.zeros(2)
    state["model.layers.7.mlp.up_proj.weight"] = torch.zeros(2)
    state["model.image_newline"] = torch.zeros(9)
    state["model.layers.0.mlp.up_proj.weight"] = torch.zeros(96, 64, dtype=torch.int32)
    write_shards(source, state)
    line = refused(source)
    assert not (source.parent / "out.tensors.txt").exists(), "the message holds them all"
    assert "2 missing: model.mm_projector.2.bias, model.norm.weight" in line
    assert "2 unknown: model.extra, model.layers.7.mlp.up_proj.weight" in line
    assert "model.image_newline is F32 [9], want [64]" in line
    assert "model.layers.0.mlp.up_proj.weight is I32 [96, 64], want [96, 64]" in line


def test_a_type_that_numpy_does_not_have_is_told(source: Path) -> None:
    state = state_of(source)
    name = "model.layers.0.mlp.up_proj.weight"
    write_shards(source, state | {name: state[name].to(torch.float8_e4m3fn)})
    assert f"{name} is F8_E4M3 [96, 64], want [96, 64]" in refused(source)
    head = state["model.embed_tokens.weight"].to(torch.float8_e4m3fn)
    write_shards(source, state | {"lm_head.weight": head})
    assert "lm_head.weight differs from model.embed_tokens.weight" in refused(source)


def test_tensors_are_looked_up_by_name_without_reading_them(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    getitem = TensorFile.__getitem__

    def counting(file: TensorFile, name: str) -> Any:
        read.append(name)
        return getitem(file, name)

    monkeypatch.setattr(TensorFile, "__getitem__", counting)
    folder = HfFolder(source)
    plan_from_llava(folder, None, frames=4)
    one = TensorFile(source / SHARD)
    assert next(iter(one)) in one and "gone" not in one and "gone" not in folder.tensors
    assert not read


def test_layers_that_lack_the_same_are_named_as_one(source: Path) -> None:
    state = state_of(source)
    for layer in (7, 8, 9, 12):
        state[f"model.layers.{layer}.mlp.up_proj.weight"] = torch.zeros(2)
    write_shards(source, state)
    assert "4 unknown: model.layers.7-9+12.mlp.up_proj.weight" in refused(source)


def test_more_names_than_a_line_can_hold_are_counted(source: Path) -> None:
    state = state_of(source)
    for letter in string.ascii_lowercase:
        state[f"model.{letter * 200}.weight"] = torch.zeros(2)
    write_shards(source, state)
    line = refused(source)
    listed = line.count(".weight")
    assert "26 unknown: model.a" in line and f" and {26 - listed} more; every name: " in line
    assert 10 < listed < 26 and len(line) < 4000
    names = (source.parent / "out.tensors.txt").read_text().splitlines()
    assert names == [f"unknown: model.{letter * 200}.weight" for letter in string.ascii_lowercase]


_IMPORT = """
import sys
from pathlib import Path
from vqedge.errors import CheckpointError
from vqedge_export.hf.importing import checkpoint_from_folder

try:
    checkpoint_from_folder(Path(sys.argv[1]), Path(sys.argv[2]))
except CheckpointError as error:
    sys.exit("every name: " not in str(error))
"""


def test_names_of_tensors_are_written_in_any_language_whatever_the_machine_speaks(
    source: Path,
) -> None:
    names = [f"model.{'ü' * 200}{number}.weight" for number in range(26)]
    write_shards(source, state_of(source) | {name: torch.zeros(2) for name in names})
    out = source.parent / "out"
    english = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", _IMPORT, str(source), str(out)]
    subprocess.run(command, check=True, timeout=120, env=os.environ | english)
    written = out.with_name("out.tensors.txt").read_text(encoding="utf-8").splitlines()
    assert sorted(written) == sorted(f"unknown: {name}" for name in names)


def test_what_is_known_to_be_harmless_is_named_not_refused(source: Path) -> None:
    state = state_of(source)
    inner = "model.vision_tower.vision_tower.vision_model."
    spare = [
        f"{inner}head.probe",
        f"{inner}encoder.layers.2.layer_norm1.weight",
        "model.layers.0.self_attn.rotary_emb.inv_freq",
    ]
    write_shards(source, state | {name: torch.zeros(2) for name in spare})
    imported = checkpoint_from_folder(source, source.parent / "out")
    assert set(spare) <= set(imported.ignored)
    assert origin_of(imported.path).ignored == imported.ignored


def test_the_same_tensor_in_two_shards(source: Path) -> None:
    save_file(state_of(source), source / SHARD)
    assert "is in another shard, too" in refused(source)


def test_numbers_that_are_none(source: Path) -> None:
    state = state_of(source)
    state["model.mm_projector.0.weight"][3, 4] = torch.nan
    write_shards(source, state)
    assert "model.mm_projector.0.weight holds NaN or infinity" in refused(source)


def test_no_folder_and_one_that_is_in_the_way(source: Path, tmp_path: Path) -> None:
    assert "no such folder" in refused(tmp_path / "nowhere")
    (tmp_path / "taken").mkdir()
    with pytest.raises(CheckpointError, match="taken: exists already"):
        checkpoint_from_folder(source, tmp_path / "taken")


def test_an_import_leaves_another_of_the_same_name_alone(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have one process id, as in containers."""
    write, out = importing._write_base, tmp_path / "out"

    def overtaken(work: Path, *others: Any) -> ModelConfig:
        monkeypatch.setattr(importing, "_write_base", write)
        checkpoint_from_folder(source, out)
        return write(work, *others)

    monkeypatch.setattr(importing, "_write_base", overtaken)
    with pytest.raises(CheckpointError, match=f"{out}: exists already"):
        checkpoint_from_folder(source, out)
    assert open_checkpoint(out).config.llm.weights_sha256
    assert not list(tmp_path.glob(".*"))


def test_what_a_killed_import_left_goes_with_the_next(source: Path, tmp_path: Path) -> None:
    left = tmp_path / ".out.01234567.partial"
    (left / "new").mkdir(parents=True)
    for name in ("lock", "new/llm.gguf"):
        (left / name).write_bytes(b"")
    checkpoint_from_folder(source, tmp_path / "out")
    assert not list(tmp_path.glob(".*"))


def test_a_mode_that_the_source_does_not_have(tmp_path: Path) -> None:
    source = write_llava(tmp_path / "plain", attention=False)
    assert "--mode official: " in refused(source, ConfigError, mode="official")


def test_a_mode_that_there_is_not(source: Path) -> None:
    line = refused(source, UsageError, mode="other")
    assert line == "--mode other: choose one of official, paper, codes"


def test_weights_that_were_exchanged_after_the_import(source: Path, tmp_path: Path) -> None:
    path = checkpoint_from_folder(source, tmp_path / "out").path
    config = open_checkpoint(path).config.encoder
    weights = encoder_weights(config, path)
    assert (weights.source.name, weights.source.licence) == ("source", "apache-2.0")
    (path / ORIGIN).write_text("{}")
    with pytest.raises(CheckpointError, match=re.escape("origin.json: ")):
        encoder_weights(config, path)
    data = bytearray(weights.path.read_bytes())
    data[-1] ^= 1
    weights.path.write_bytes(data)
    with pytest.raises(CheckpointError, match="another file than"):
        encoder_weights(config, path)
    weights.path.unlink()
    with pytest.raises(CheckpointError, match="was it made by `vqedge import`"):
        encoder_weights(config, path)
