"""Recipes with every kind of fault: what is said, and that it is said at once."""

import pytest

from dcae_core.errors import RecipeError
from dcae_core.recipes.evaluate import EvaluateRecipe
from dcae_core.recipes.loading import load_any_recipe, load_recipe, read_recipe, write_recipe
from dcae_core.recipes.train_ae import TrainAutoencoderRecipe
from dcae_core.recipes.yaml_reader import read_yaml

RIGHT = """
command: train-ae
run_dir: runs/x
network: {model: dc-ae-f32c32-in-1.0}
data:
  sources:
    - path: images
phases:
  - name: full
    resolution: 64
    batch_size: 2
    steps: 10
    losses: {l1: 1}
    optimiser: {learning_rate: 1e-4}
  - name: local_refinement
    resolution: 64
    batch_size: 2
    steps: 10
    losses:
      l1: 1
      adversarial: {weight: 0.1, optimiser: {learning_rate: 1e-4}}
    optimiser: {learning_rate: 1e-4}
"""


def read(text: str, *overrides: str, checks=None) -> TrainAutoencoderRecipe:
    return read_recipe(text, "test.yaml", TrainAutoencoderRecipe, list(overrides), checks)


def faults_of(text: str, *overrides: str, checks=None) -> str:
    with pytest.raises(RecipeError) as refused:
        read(text, *overrides, checks=checks)
    return str(refused.value)


def test_written_recipe_reads_back_the_same() -> None:
    recipe = read(RIGHT)
    assert recipe.phases[0].optimiser.learning_rate == 1e-4
    assert read(write_recipe(recipe)) == recipe


def test_scalars_are_what_they_look_like() -> None:
    document, faults = read_yaml("{a: 1e-4, b: no, c: off, d: 1_0, e: 0x10, f: 1:30, g: 2020-01-01, h: .5, i: 08}", "x")
    assert document == {
        "a": 1e-4, "b": "no", "c": "off", "d": "1_0", "e": "0x10", "f": "1:30", "g": "2020-01-01", "h": 0.5, "i": 8,
    }  # fmt: skip
    assert faults == []


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("phases.0.optimiser.learning_rat=1", "phases.full.optimiser.learning_rat: unknown key; did you mean"),
        ("phases.full.losses.lpip=1", "phases.full.losses.lpip: unknown key; did you mean 'lpips'?"),
        ("datta.flip=true", "datta: unknown key; did you mean 'data'?"),
        ("phases.full.batch_size=2.5", "phases.full.batch_size: expected a whole number, not 2.5"),
        ("phases.full.batch_size=two", "phases.full.batch_size: expected a whole number, not 'two'"),
        ("phases.full.batch_size=0", "phases.full.batch_size: expected greater than or equal to 1, not 0"),
        ("data.flip=no", "data.flip: expected true or false, not 'no'"),
        ("data.sources=images", "data.sources: expected a list, not 'images'"),
        ("data=3", "data: expected keys and values, not 3"),
        ("phases.full.optimiser.learning_rate=.nan", "phases.full.optimiser.learning_rate: expected a finite number"),
        ("phases.full.optimiser.learning_rate=null", "full.optimiser.learning_rate: expected a number, not None"),
        ("phases.full.name=ful", "phases.ful.name: expected 'full', 'latent_adaptation' or"),
        ("phases.full.train=[encoder_hed]", "phases.full.train.0: expected 'all'"),
        ("phases.full.losses.l1=0", "phases.full.losses: nothing compares the reconstruction"),
        ("phases.full.accumulation=3", "phases.full.accumulation: a batch of 2 cannot fill 3 parts"),
        ("phases.1.losses.adversarial.weight=0", "phases.local_refinement.losses.adversarial.weight: 0.0 means"),
        ("phases.1.losses.adversarial.weight=-1", "phases.local_refinement.losses.adversarial.weight: -1.0 means"),
        (
            "phases.1.losses.adversarial.discriminator={num_layers: 100000}",
            "losses.adversarial.discriminator.num_layers: expected less than or equal to 8, not 100000",
        ),
        ("phases.1.name=full", "phases: full cannot follow full"),
        ("phases.0.name=local_refinement", "phases: local_refinement cannot follow local_refinement"),
        ("network.weights=x", "network: give `model`"),
        ("data.scale=[0.5, 0.2]", "data.scale: the smallest, 0.5, is above the largest, 0.2"),
        ("seed=-1", "seed: expected greater than or equal to 0, not -1"),
        ("seed", "--set seed: expected key=value"),
        ("run_dir.x=1", "--set run_dir.x=1: 'run_dir.x' leads to nothing"),
        ("phases.nothing.steps=1", "--set phases.nothing.steps=1: 'phases.nothing.steps' leads to nothing"),
        ("seed=[1", "--set seed=[1, line 1"),
    ],
)  # fmt: skip
def test_one_fault_one_line(override: str, message: str) -> None:
    report = faults_of(RIGHT, override)
    assert message in report
    assert "\n" not in report


def test_all_faults_come_in_one_report() -> None:
    """Of the text, of types, of keys, between settings, and beside the network."""

    def checks(recipe: TrainAutoencoderRecipe) -> list[str]:
        return ["network: not there"]

    text = RIGHT.replace("batch_size: 2", "batch_sise: two", 1) + "run_dir: again\n"
    report = faults_of(text, "sed=1", "data.flip=1", "phases.0.losses.l1=0", "phases.1.name=full", checks=checks)
    for fault in (
        "the key 'run_dir'",
        "sed: unknown key",
        "data.flip: expected",
        "phases.full.losses",
        "full cannot",
        "not there",
    ):
        assert fault in report
    assert report.startswith("test.yaml has 8 faults:\n")


def test_missing_settings_are_named() -> None:
    report = faults_of("command: train-ae\nnetwork: {model: x}\n")
    for name in ("run_dir", "data", "phases"):
        assert f"{name}: is missing" in report


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "made of keys and values"),
        ("- 1", "made of keys and values"),
        ("command: eval", "this is a recipe for `dcae eval`, not for `dcae train-ae`"),
        ("comand: train-ae", "'command: train-ae' is missing (it has 'comand')"),
        ("a: &x 1\nb: *x", "aliases are not allowed"),
        ("a: !!python/object/apply:os.system [true]", "could not determine a constructor"),
        ("a: 1\n---\nb: 2", "another document"),
        ("a: [1", "line 1"),
        ("\tcommand: x", "line 1"),
        ("[" * 5000, "nested too deeply"),
        ("a: " + "x" * 1_000_001, "larger than"),
        ("? [a]\n: 1", "a key must be a single word"),
    ],
)
def test_what_is_no_recipe_is_refused(text: str, message: str) -> None:
    report = faults_of(text)
    assert message in report
    assert "\n" not in report


def test_alias_bomb_costs_nothing() -> None:
    lines = ["a0: &a0 [x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30)]
    assert "aliases are not allowed" in faults_of("\n".join(lines))


def test_a_tilde_is_the_home_directory_and_a_run_has_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    recipe = read(RIGHT, "run_dir=~/runs/x", "data.sources.0.path=~/images")
    assert recipe.run_dir == "/home/someone/runs/x"
    assert recipe.data.sources[0].path == "/home/someone/images"
    assert "run_dir" in faults_of(RIGHT, "run_dir=")
    assert "run_dir" in faults_of(RIGHT, 'run_dir=""')


def test_a_mistyped_command_line_is_answered_with_command(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("comand: eval\nautoencoder: {}\n")
    for read in (lambda: load_any_recipe(path), lambda: load_recipe(path, EvaluateRecipe)):
        with pytest.raises(RecipeError, match=r"it has 'comand'\); did you mean 'command'"):
            read()
