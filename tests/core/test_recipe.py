"""Recipes and what overrides them."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_baselines import write_checkpoint
from typer.testing import CliRunner

from vqedge.checkpoint import CONFIG
from vqedge.cli import app
from vqedge.config import ModelConfig, QuantizerConfig
from vqedge.errors import ConfigError, UsageError
from vqedge.recipe import PhotosConfig, read_recipe

ROOT = Path(__file__).parents[2]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text("optim: {steps: 7}\ndata: {questions_per_clip: 9}\n")
    return path


def test_a_recipe_with_overrides(recipe: Path) -> None:
    config = read_recipe(recipe, ["optim.steps=3", "output=runs/x", "model.llm.width=8"])
    assert (config.optim.steps, config.data.questions_per_clip, config.output) == (
        3,
        9,
        Path("runs/x"),
    )
    assert config.model.llm.width == 8


@pytest.mark.parametrize("name", ["2026-11-29", "7", "runs/x: y"])
def test_a_folder_is_its_name_whatever_it_would_be_in_yaml(recipe: Path, name: str) -> None:
    assert read_recipe(recipe, output=Path(name)).output == Path(name)


def test_an_override_reaches_into_a_list(recipe: Path) -> None:
    sources = "data.sources=[{kind: world, seed: 1}, {kind: world, seed: 3}]"
    config = read_recipe(recipe, [sources, "data.sources.1.clips=5"])
    assert [entry.model_dump()["clips"] for entry in config.data.sources] == [4000, 5]


def test_every_recipe_of_the_repository_is_valid() -> None:
    recipes = sorted((ROOT / "recipes").glob("*.yaml"))
    assert recipes
    for path in recipes:
        assert read_recipe(path).model.quantizer.codes > 0


def test_every_recipe_begins_with_a_model_of_the_repository_or_of_another_recipe() -> None:
    recipes = {path.name: read_recipe(path) for path in (ROOT / "recipes").glob("*.yaml")}
    kept = {path.parent.relative_to(ROOT) for path in ROOT.glob(f"models/*/{CONFIG}")}
    made = {config.output: config for config in recipes.values()}
    assert len(made) == len(recipes), "two recipes write one folder"
    for name, config in recipes.items():
        before = []  # on the way back to what there is
        while config.init is not None and config.init not in kept:
            assert config.init in made, f"{name}: nothing makes {config.init}"
            assert config.init not in before, f"{name}: goes round in circles"
            before.append(config.init)
            config = made[config.init]


def test_every_recipe_with_photos_says_how_to_make_their_index() -> None:
    command = "`python scripts/_photos.py FOLDER build/photos/index.jsonl`"
    for path in (ROOT / "recipes").glob("*.yaml"):
        config = read_recipe(path)
        sources = (*config.data.sources, *config.validation)
        indexes = {source.index for source in sources if isinstance(source, PhotosConfig)}
        assert indexes <= {Path("build/photos/index.jsonl")}, path
        assert (command in path.read_text(encoding="utf-8")) == bool(indexes), path


FAULTS = {
    "'optim.stepz=3': no such key; did you mean steps?": ["optim.stepz=3"],
    "'optm.steps=3': optm: no such key; did you mean optim?": ["seed=1", "optm.steps=3"],
    "'extra=1': no such key; --print-config shows all": ["extra=1"],
    "'optim.steps=0': Input should be greater than 0": ["optim.steps=9", "optim.steps=0"],
    "'data.sources.0.clips=0': Input should be greater than 0": [
        "data.sources=[{kind: world}]",
        "data.sources.0.clips=0",
    ],
    "world 2 is held out": ["data.sources=[{kind: world, seed: 2}]"],
    "world 70001 is held out": ["data.sources=[{kind: world, seed: 70001}]"],
    "world 70003 is held out": ["data.sources=[{kind: world, seed: 70003}]"],
    "photos test is held out": ["data.sources=[{kind: photos, index: i.jsonl, split: test}]"],
    "photos confirm is held out": ["data.sources=[{kind: photos, index: i.jsonl, split: confirm}]"],
    "'validation=[]': Tuple should have at least 1 item": ["validation=[]"],
    "heads 5 do not divide width 384": ["model.attention.heads=5"],
    "'seed=-1': Input should be greater than or equal to 0": ["seed=-1"],
    "'data.workers=1000': give 0 to 256, or auto": ["data.workers=1000"],
    "'optim.steps=many': Input should be a valid integer": ["optim.steps=many"],
    "'optim.steps.more=1': optim.steps: Input should be": ["optim={}", "optim.steps.more=1"],
    "'optim.learning_rate=.inf': Input should be a finite": ["optim.learning_rate=.inf"],
    "'data.sources=[{kind: world, weight: .inf}]': data.sources.0.weight: Input should be a": [
        "data.sources=[{kind: world, weight: .inf}]"
    ],
    "an override reads key.sub=value": ["optim.steps"],
    "'output=2026-02-30': day ": ["output=2026-02-30"],
    "'seed=[': while parsing": ["seed=["],
    "': is nested too deeply": ["seed=" + "[" * 5000],
    "'seed=!!bool maybe': a value is not what its tag says": ["seed=!!bool maybe"],
    "'seed=!!timestamp x': a value is not what its tag says": ["seed=!!timestamp x"],
    "'optim={steps: 1, steps: 2}': the key 'steps' is repeated": ["optim={steps: 1, steps: 2}"],
    "'precision=int4': Input should be 'fp32' or 'bf16'": ["precision=int4"],
    "'questions_per_clip' is a value": ["data.questions_per_clip.more=1"],
    "'2' is not one of 1, counted from 0": [
        "data.sources=[{kind: world}]",
        "data.sources.2.clips=1",
    ],
    "'clips' is not one of 1": ["data.sources=[{kind: world}]", "data.sources.clips=1"],
    "want model.quantizer.default_budget among them": ["data.budgets=[8]"],
    "none may exceed model.quantizer.codes": ["data.budgets=[8, 200]"],
    "must divide optim.clips_per_step": ["optim.accumulate=3"],
    "want attention.hash occupancy or places": [
        "optim.hash_dropout=0.2",
        "model.attention.hash=none",
    ],
    "does not match any of the expected tags": ["data.sources=[{kind: radio}]"],
}


@pytest.mark.parametrize("problem", FAULTS)
def test_a_bad_override_is_named(recipe: Path, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_recipe(recipe, FAULTS[problem])
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("override", ["init=5", "init.x=1", 'init=["a"]'])
def test_an_init_that_is_no_path(recipe: Path, override: str) -> None:
    with pytest.raises(UsageError, match="Input is not a valid path") as caught:
        read_recipe(recipe, [override])
    assert str(caught.value).startswith(f"{override!r}: ")


START = ModelConfig(quantizer=QuantizerConfig(kind="reducer:uniform-pool", codes=128))


@pytest.mark.parametrize("told_by", ["the file", "an override"])
def test_overrides_change_the_model_that_init_gives(tmp_path: Path, told_by: str) -> None:
    path, init = tmp_path / "run.yaml", f"init{{}}{write_checkpoint(tmp_path / 'start', START)}"
    path.write_text(init.format(": ") if told_by == "the file" else "seed: 1\n")
    last = [init.format("=")] if told_by == "an override" else []
    assert read_recipe(path, last).model == START
    model = read_recipe(path, ["model.quantizer.default_budget=16", *last]).model
    changed = START.quantizer.model_copy(update={"default_budget": 16})
    assert model == START.model_copy(update={"quantizer": changed})


def test_a_model_of_the_file_is_not_that_of_init(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "start", START)
    path = tmp_path / "run.yaml"
    path.write_text("model: {quantizer: {default_budget: 8}}\n")
    model = read_recipe(path, [f"init={tmp_path / 'start'}"]).model
    assert model == ModelConfig(quantizer=QuantizerConfig(default_budget=8))


def test_budgets_that_no_step_draws_are_no_fault(recipe: Path) -> None:
    asked = ["model.quantizer.kind=reducer:query-window", "data.budgets=[8, 200]"]
    config = read_recipe(recipe, asked)
    assert config.budgets == (config.model.quantizer.default_budget,)


@pytest.mark.parametrize(
    "text",
    [
        "optim: {steps: [",
        "- just\n- a list\n",
        "just words",
        "\xff",
        "output: 2026-02-30",
        "[" * 5000,
        "seed: !!int ''",
        "seed: 1\nseed: 1",
        "optim: {steps: 7}\nseed: 1\noptim: {warmup_steps: 3}",
    ],
    ids=range(9),
)
def test_a_file_that_is_no_recipe(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"bad\.yaml: ") as caught:
        read_recipe(path, ["seed=1"])
    assert "\n" not in str(caught.value)


def test_keys_that_are_merged_are_not_repeated(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("optim: {<<: {steps: 3}, <<: &b {<<: {warmup_steps: 2}, warmup_steps: 4}}")
    assert (read_recipe(path).optim.steps, read_recipe(path).optim.warmup_steps) == (3, 4)


def test_a_recipe_without_end() -> None:
    with pytest.raises(ConfigError, match="/dev/zero: holds more than 1 MiB; give a file as"):
        read_recipe(Path("/dev/zero"))


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such file; see recipes/world\.yaml"):
        read_recipe(tmp_path / "none.yaml")
    with pytest.raises(ConfigError) as caught:
        read_recipe(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}: Is a directory; give a file as recipes/")


def test_the_command_says_what_is_wrong(recipe: Path) -> None:
    outcome = CliRunner().invoke(app, ["train", str(recipe), "optim.stepz=3"])
    assert isinstance(outcome.exception, UsageError)
    assert str(outcome.exception) == "'optim.stepz=3': no such key; did you mean steps?"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("optim: {stepz: 3}", "optim.stepz: no such key; did you mean steps?"),
        ("optim: {steps: 0}", "optim.steps: Input should be greater than 0"),
        ("model: {attention: {heads: 5}}", "model.attention: heads 5 do not divide width 384"),
    ],
)
def test_a_fault_of_the_file_is_that_of_no_override(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_recipe(path, ["seed=1", "optim.accumulate=1", "model.attention.hash=none"])
    assert not isinstance(caught.value, UsageError)
    assert str(caught.value) == f"{path}: {words}"
