"""The cache of quantised clips: what it holds is what encoding gives, whole or in parts."""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from multiprocessing import active_children
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vqedge.config import EncoderConfig, QuantizerConfig
from vqedge.data.generated import GeneratedClips, SceneClip
from vqedge.data.mixture import Pick
from vqedge.errors import VideoError
from vqedge.model.quantizer import KMeansQuantizer
from vqedge.model.reducers.quantizer import ReducerQuantizer
from vqedge.model.reducers.registry import Sizes, make_reducer
from vqedge.progress import Clock
from vqedge.reducers import KINDS, Kind
from vqedge.training.cache import ClipCache
from vqedge.training.dataset import TrainingClips
from vqedge.training.features import (
    SHARD_CLIPS,
    FeatureCache,
    features_folder,
    load_features,
    shard_rows,
)

ENCODER = EncoderConfig(frames=2, size=28)
QUANTIZER = QuantizerConfig(codes=4, default_budget=4, iterations=2)
CLIPS, BUDGETS = SHARD_CLIPS + 3, (2, 4)


class CountingBackbone(nn.Module):
    """Mean colours of the patches; counts the clips it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0 / 255.0 / 196.0))
        self.seen = 0

    def forward(self, frames: Tensor) -> Tensor:
        self.seen += 1
        # whole numbers: the same sum in any order
        patches = frames.long().unfold(1, 14, 14).unfold(2, 14, 14).sum(dim=(-1, -2))
        return patches.flatten(1, 2) * self.scale + torch.arange(3.0)


@pytest.fixture
def quantizer() -> Any:
    vit = CountingBackbone()
    return SimpleNamespace(
        vit=vit,
        quantizer=KMeansQuantizer(4, 2, 0.1),
        patches=lambda frames: vit(frames).flatten(0, 1),
    )


def cache(root: Path, clips: int = CLIPS, **changes: Any) -> ClipCache:
    return ClipCache(root, ENCODER, QUANTIZER, GeneratedClips(1, clips), BUDGETS, **changes)


def filled(made: Any, quantizer: Any, workers: int = 0) -> Any:
    for _shard in made.fill(made.missing(), quantizer, workers):
        pass
    return made


def test_every_clip_is_quantised_at_every_budget(tmp_path: Path, quantizer: Any) -> None:
    made = filled(cache(tmp_path), quantizer)
    assert made.missing() == [] and quantizer.vit.seen == CLIPS
    clips = made.load()
    number = SHARD_CLIPS + 1  # in the second shard
    frames = torch.from_numpy(made.source[number].frames(2, 28))
    with torch.inference_mode():
        features = quantizer.vit(frames).flatten(0, 1).half().float()
    for budget in BUDGETS:
        assert clips[budget].codes.shape == (CLIPS, budget, 3)
        wanted = KMeansQuantizer(budget, 2, 0.1)(features, torch.tensor(budget))
        assert torch.equal(clips[budget].indices[number].int(), wanted.indices)
        assert torch.equal(clips[budget].codes[number], wanted.codes.half())


def test_filling_goes_on_where_it_stopped(tmp_path: Path, quantizer: Any) -> None:
    made = cache(tmp_path)
    next(iter(made.fill(made.missing(), quantizer)))  # killed after the first shard
    assert made.missing() == [1]
    filled(made, quantizer)
    assert quantizer.vit.seen <= CLIPS + 1


@pytest.mark.parametrize("left", [0, 100])
def test_a_shard_that_a_crash_cut_off_is_made_again(
    tmp_path: Path, quantizer: Any, left: int
) -> None:
    made = filled(cache(tmp_path, clips=3), quantizer)
    whole = made.load()[2]
    path = made.folder(2) / "clips-00000.safetensors"
    path.write_bytes(path.read_bytes()[:left])
    assert made.missing() == [0]
    assert torch.equal(filled(made, quantizer).load()[2].codes, whole.codes)


def test_a_shard_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, quantizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, flushed = cache(tmp_path, clips=3), []
    paths = [made.folder(budget) / "clips-00000.safetensors" for budget in BUDGETS]

    def fsync(handle: int) -> None:
        flushed.append((os.fstat(handle).st_size, sum(path.exists() for path in paths)))

    monkeypatch.setattr(os, "fsync", fsync)
    filled(made, quantizer)
    assert flushed == [(path.stat().st_size, number) for number, path in enumerate(paths)]


def test_a_longer_run_encodes_only_what_is_new(tmp_path: Path, quantizer: Any) -> None:
    filled(cache(tmp_path, clips=SHARD_CLIPS), quantizer)
    longer = filled(cache(tmp_path), quantizer)
    assert quantizer.vit.seen == CLIPS
    assert len(longer.load()[2]) == CLIPS
    assert len(cache(tmp_path, clips=10).load()[2]) == 10


def test_kept_features_serve_another_quantizer(tmp_path: Path, quantizer: Any) -> None:
    filled(cache(tmp_path, keep_features=True), quantizer)
    folder = features_folder(tmp_path, ENCODER, GeneratedClips(1, CLIPS))
    assert load_features(folder, 1).shape == (3, 8, 3)
    other = QUANTIZER.model_copy(update={"iterations": 1})
    again = ClipCache(tmp_path, ENCODER, other, GeneratedClips(1, CLIPS), BUDGETS)
    assert again.folder(2) != cache(tmp_path).folder(2)
    filled(again, quantizer)
    assert quantizer.vit.seen == CLIPS  # nothing was encoded twice


def test_a_codebook_shares_the_clips_of_kmeans(tmp_path: Path) -> None:
    learned = QUANTIZER.model_copy(update={"kind": "codebook", "adaptive_error": 0.3})
    other = ClipCache(tmp_path, ENCODER, learned, GeneratedClips(1, CLIPS), BUDGETS)
    assert other.folder(2) == cache(tmp_path).folder(2)


def test_a_folder_is_named_by_all_that_changes_codes(tmp_path: Path) -> None:
    """A new field of the quantizer has to be put in one of these lists."""
    same = {"default_budget": 2, "adaptive_error": 0.9, "levels": 2, "entries": 7}
    same |= {"codebook_width": 3, "codes": 64}
    other = {"kind": "reducer:uniform-pool", "iterations": 1, "unit_means": True}
    assert same.keys() | other.keys() == QuantizerConfig.model_fields.keys()
    for changes, alike in ((same, True), (other, False)):
        for name, value in changes.items():
            changed = QUANTIZER.model_copy(update={name: value})
            found = ClipCache(tmp_path, ENCODER, changed, GeneratedClips(1, CLIPS), BUDGETS)
            assert (found.folder(2) == cache(tmp_path).folder(2)) is alike, name
    codes = (QUANTIZER.model_copy(update={"kind": "reducer:scissor", "codes": n}) for n in (8, 16))
    few, many = (ClipCache(tmp_path, ENCODER, c, GeneratedClips(1, CLIPS), BUDGETS) for c in codes)
    assert few.folder(2) != many.folder(2), "components of a frame are cut at its codes"


@pytest.mark.parametrize(
    ("kind", "method", "changed"),
    [
        ("kmeans", "kmeans2", "KMEANS"),
        ("codebook", "kmeans2", "KMEANS"),
        ("reducer:uniform-pool", "reducer-uniform-pool-of4", "uniform-pool"),
        ("reducer:scissor", "reducer-scissor-of4", "scissor"),
    ],
)
def test_a_folder_is_named_by_the_version_of_what_makes_its_codes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str, method: str, changed: str
) -> None:
    """Versions beyond the first; names without one are those of all caches made before."""

    def name() -> str:
        return reducing_cache(tmp_path, kind).folder(2).name

    before = f"{ENCODER.fingerprint()}-{method}-k2-{GeneratedClips(1, 3).fingerprint}"
    assert name() == before
    if changed == "KMEANS":
        monkeypatch.setattr("vqedge.reducers.KMEANS", Kind(version=2))
    else:
        monkeypatch.setitem(KINDS, changed, replace(KINDS[changed], version=2))
    assert name() == before.replace(method, f"{method}-v2")
    assert "-v2" not in reducing_cache(tmp_path, "reducer:tome").folder(2).name


@pytest.mark.parametrize("kind", ["kmeans", "codebook", "reducer:uniform-pool", "reducer:tome"])
def test_means_of_features_of_length_one_have_a_folder_of_their_own(
    tmp_path: Path, kind: str
) -> None:
    raw, unit = (
        QUANTIZER.model_copy(update={"kind": kind, "unit_means": unit}) for unit in (False, True)
    )
    folders = [
        ClipCache(tmp_path, ENCODER, quantizer, GeneratedClips(1, CLIPS), BUDGETS).folder(2)
        for quantizer in (raw, unit)
    ]
    assert folders[0] != folders[1] and "-unit" not in folders[0].name


def test_recipes_share_the_budgets_they_have_in_common(tmp_path: Path, quantizer: Any) -> None:
    source = GeneratedClips(1, 3)
    filled(ClipCache(tmp_path, ENCODER, QUANTIZER, source, (4, 2)), quantizer)
    fewer = QUANTIZER.model_copy(update={"codes": 2, "default_budget": 2})
    shared = ClipCache(tmp_path, ENCODER, fewer, source, (2,))
    assert shared.missing() == []
    other = SimpleNamespace(**vars(quantizer) | {"quantizer": KMeansQuantizer(2, 2, 0.1)})
    alone = filled(ClipCache(tmp_path / "alone", ENCODER, fewer, source, (2,)), other)
    assert torch.equal(shared.load()[2].codes, alone.load()[2].codes)
    more = ClipCache(tmp_path, ENCODER, QUANTIZER, source, (2, 3))
    assert more.missing() == [0]
    before = (more.folder(2) / "clips-00000.safetensors").stat().st_mtime_ns
    filled(more, quantizer)
    assert (more.folder(2) / "clips-00000.safetensors").stat().st_mtime_ns == before
    assert more.load()[3].codes.shape == (3, 3, 3)


def reducing_cache(root: Path, kind: str) -> ClipCache:
    other = QUANTIZER.model_copy(update={"kind": kind})
    return ClipCache(root, ENCODER, other, GeneratedClips(1, 3), BUDGETS, keep_features=True)


def test_a_reducer_has_clips_of_its_own_and_shares_features(tmp_path: Path, quantizer: Any) -> None:
    filled(cache(tmp_path, clips=3, keep_features=True), quantizer)
    seen, made = quantizer.vit.seen, reducing_cache(tmp_path, "reducer:tome")
    assert made.folder(2).name.split("-")[1:3] == ["reducer", "tome"]
    reducer = ReducerQuantizer(make_reducer("tome", Sizes(4, 2, 2, 3, 3, 4)), 4, 2)
    filled(made, SimpleNamespace(vit=quantizer.vit, quantizer=reducer))
    assert quantizer.vit.seen == seen, "the features were there"
    features = load_features(features_folder(tmp_path, ENCODER, GeneratedClips(1, 3)), 0)
    with torch.inference_mode():
        wanted = reducer(features[2].float(), torch.tensor(2))
    clips = made.load()[2]
    assert clips.codes.shape == (3, 2, 3)
    assert torch.equal(clips.indices[2].int(), wanted.indices)
    assert torch.equal(clips.codes[2], wanted.codes[:2].half())


def test_features_with_attention_are_kept_apart(tmp_path: Path, quantizer: Any) -> None:
    filled(cache(tmp_path, clips=3, keep_features=True), quantizer)
    seen, made = quantizer.vit.seen, reducing_cache(tmp_path, "reducer:prumerge")
    reducer = ReducerQuantizer(make_reducer("prumerge", Sizes(4, 2, 2, 3, 3, 4)), 4, 2)
    attended = SimpleNamespace(vit=quantizer.vit, quantizer=reducer)
    attended.patches = lambda frames: torch.cat(
        [quantizer.patches(frames), torch.ones(8, 1) / 4], dim=1
    )
    filled(made, attended)
    assert quantizer.vit.seen == seen + 3, "three columns are not four"
    plain = features_folder(tmp_path, ENCODER, GeneratedClips(1, 3))
    assert load_features(plain, 0).shape[2] == 3
    assert load_features(plain.with_name(f"{plain.name}-cls"), 0).shape[2] == 4
    assert made.load()[2].codes.shape == (3, 2, 3)


def test_features_alone_are_read_clip_by_clip(tmp_path: Path, quantizer: Any) -> None:
    """What a reducer with weights is trained on; played backwards, frames turn and nothing else."""
    source = GeneratedClips(1, CLIPS)
    made = FeatureCache(tmp_path, ENCODER, source)
    assert made.missing() == [0, 1]
    for _shard in made.fill([1], quantizer):
        pass
    assert made.missing() == [0] and quantizer.vit.seen == 3
    filled(made, quantizer)
    number = SHARD_CLIPS + 2
    features = made.load()[number]
    frames = torch.from_numpy(source[number].frames(2, 28))
    with torch.inference_mode():
        assert torch.equal(features, quantizer.patches(frames).half())
        turned = quantizer.patches(frames.flip(0)).half()
    clips = TrainingClips((source,), (made.load(),), (1.0,), 2, True)
    picks = [Pick(0, number, False), Pick(0, number, True)]
    batch = clips.batch(picks, 3)
    assert batch.indices is None and batch.budget == 3
    assert torch.equal(batch.rows, torch.stack([features, turned]))


def test_a_clip_is_made_once_and_is_that_of_its_source(tmp_path: Path) -> None:
    source = GeneratedClips(1, 5)
    clips = TrainingClips(
        (source,), (FeatureCache(tmp_path, ENCODER, source).load(),), (1,), 2, True
    )
    forwards, backwards = Pick(0, 4, False), Pick(0, 4, True)
    assert clips.clip(forwards) == source[4] != clips.clip(backwards) == source[4].reversed()
    assert clips.clip(forwards) is clips.clip(forwards)
    assert clips.clip(backwards) is clips.clip(backwards)


@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes")  # on one core
def test_processes_that_draw_ahead_change_nothing(tmp_path: Path, quantizer: Any) -> None:
    alone = filled(cache(tmp_path / "alone", clips=4), quantizer).load()
    helped = filled(cache(tmp_path / "helped", clips=4), quantizer, workers=2).load()
    assert torch.equal(alone[4].codes, helped[4].codes)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_a_signal_to_the_whole_group_ends_no_process_that_draws_ahead(
    tmp_path: Path, quantizer: Any, name: str
) -> None:
    """`timeout`, systemd and Slurm send it to all; the command itself says what becomes of it."""
    made = cache(tmp_path)
    shards = made.fill(made.missing(), quantizer, workers=1)
    next(shards)
    (worker,) = active_children()
    os.kill(worker.pid or 0, signal.Signals[name])
    assert list(shards) == [1] and made.missing() == []
    assert not active_children()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_clock_that_is_stopped_waits_for_no_shard(
    tmp_path: Path, quantizer: Any, workers: int
) -> None:
    """`docker stop` kills ten seconds later; a time limit alone has the shard end."""
    made, clock = cache(tmp_path), Clock(0.0)
    read = quantizer.patches

    def stopping(frames: Tensor) -> Tensor:
        if quantizer.vit.seen == SHARD_CLIPS + 1:
            clock.stop()
        return read(frames)

    quantizer.patches = stopping
    assert list(made.fill(made.missing(), quantizer, workers, clock)) == [0]
    assert quantizer.vit.seen == SHARD_CLIPS + 2 and made.missing() == [1]
    quantizer.patches = read
    whole = filled(cache(tmp_path / "whole"), quantizer).load()
    assert torch.equal(filled(made, quantizer).load()[4].codes, whole[4].codes)


@dataclass(frozen=True)
class Stuck(SceneClip):
    """A clip whose file is read for longer than anybody waits."""

    reading: Path = Path()

    def frames(self, count: int, size: int) -> npt.NDArray[np.uint8]:
        self.reading.touch()
        time.sleep(60)
        raise AssertionError("nobody has ended this process")


@dataclass(frozen=True)
class StuckClips(GeneratedClips):
    """Clips of which only the first can be read."""

    reading: Path = Path()

    def __getitem__(self, number: int) -> SceneClip:
        clip = super().__getitem__(number)
        return Stuck(clip.scene, reading=self.reading) if number else clip


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize("interrupted", [False, True], ids=["stopped", "Ctrl-C"])
def test_a_process_that_is_stuck_in_a_clip_is_ended(
    tmp_path: Path, quantizer: Any, monkeypatch: pytest.MonkeyPatch, interrupted: bool
) -> None:
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.1)  # 5 seconds
    source, clock = StuckClips(1, 4, reading=tmp_path / "reading"), Clock()
    made = ClipCache(tmp_path / "cache", ENCODER, QUANTIZER, source, BUDGETS)
    read = quantizer.patches

    def stopping(frames: Tensor) -> Tensor:
        while not source.reading.exists():
            time.sleep(0.01)
        if interrupted:
            signal.setitimer(signal.ITIMER_REAL, 0.2)
        else:
            clock.stop()
        return read(frames)

    quantizer.patches = stopping
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt) if interrupted else nullcontext():
            assert not list(made.fill(made.missing(), quantizer, 1, clock))
    finally:
        signal.signal(signal.SIGALRM, before)
    for worker in active_children():
        worker.join(10)
    assert not active_children()


class Unreadable(SceneClip):
    """A clip whose file cannot be read."""

    def frames(self, count: int, size: int) -> npt.NDArray[np.uint8]:
        raise VideoError("seven.mp4: no such codec")


class UnreadableClips(GeneratedClips):
    """Clips of which none can be read; a process that is started afresh gets them as a pickle."""

    def __getitem__(self, number: int) -> SceneClip:
        return Unreadable(super().__getitem__(number).scene)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_clip_that_cannot_be_read_is_one_line(
    tmp_path: Path, quantizer: Any, workers: int
) -> None:
    unreadable = ClipCache(tmp_path, ENCODER, QUANTIZER, UnreadableClips(1, 2), BUDGETS)
    with pytest.raises(VideoError) as caught:
        filled(unreadable, quantizer, workers)
    assert str(caught.value) == "seven.mp4: no such codec"
    assert not active_children(), "what the error's frames hold would be waited for, 5 seconds"


def test_a_file_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    assert shard_rows(tmp_path / "none.safetensors") == 0


@pytest.mark.parametrize("tensors", [{}, {"codes": torch.tensor(1)}])
def test_a_file_without_rows_holds_nothing(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, tmp_path / "a.safetensors")
    assert shard_rows(tmp_path / "a.safetensors") == 0
