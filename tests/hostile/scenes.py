"""Every command that writes, small: what lies there before it, and how it is called."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from PIL import Image

from dcae_core.checkpoints import save_autoencoder
from tests.diffusion_models import write_diffusion
from tests.hostile.child import Outcome, run_dcae
from tests.small import small_autoencoder
from tests.training.small_diffusion import recipe_for as diffusion_recipe
from tests.training.small_diffusion import write_latents
from tests.training.small_runs import phase
from tests.training.small_runs import recipe_for as autoencoder_recipe

_OF_THE_CLOCK = ("images_per_second", "loader_images_per_second", "loader_wait", "seconds_left")
_GROWS = ("metrics.jsonl", "metrics.png", "damaged.txt", "latest")  # these have more states than before and after
_CPU = ("--device", "cpu")

Tree = dict[str, str]


def _write_images(folder: Path, count: int) -> None:
    for number in range(count):
        place = folder / "images" / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.png")


def _write_model(folder: Path) -> None:
    network = small_autoencoder()
    network.scaling_factor = 0.5
    save_autoencoder(network, folder / "model", layout="dcae")


def _images_and_model(folder: Path) -> None:
    _write_images(folder, 4)
    _write_model(folder)


def _autoencoder_training(folder: Path) -> None:
    checkpoints = {"every": 2}
    recipe = autoencoder_recipe(folder, phase(), phase("latent_adaptation", steps=3), checkpoints=checkpoints)
    (folder / "recipe.yaml").write_text(json.dumps(recipe.model_dump(mode="json")))


def _diffusion_training(folder: Path) -> None:
    write_latents(folder / "latents")
    recipe = diffusion_recipe(folder, **{"checkpoints.every": 1})
    (folder / "recipe.yaml").write_text(json.dumps(recipe.model_dump(mode="json")))


def _reference(folder: Path) -> None:
    _images_and_model(folder)
    run_scene(folder, "fid-ref", "--images", "images", "--resolution", 16, *_CPU, "--out", "ref.npz")


def run_scene(folder: Path, *arguments: object, prepare: Callable[[], object] = lambda: None) -> Outcome:
    """The command in `folder`, with its cache there too."""

    def prepare_all() -> None:
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        prepare()

    return run_dcae(*arguments, cwd=folder, prepare=prepare_all)


@dataclass(frozen=True)
class Scene:
    """A command, what it finds, and a shorter call before it whose results may not be lost.

    `owns_output`: it locks its output directory, and clears away there what a killed call left half written.
    """

    set_up: Callable[[Path], object]
    command: tuple[object, ...]
    before: tuple[object, ...] = ()
    owns_output: bool = True


_SAMPLE = ("sample", "--model", "model", "--steps", 2, "--batch-size", 2, "--save-latents")
_RECONSTRUCT = ("reconstruct", "--model", "model", "--save-latents", *_CPU, "-o", "out")
_EVAL = ("eval", "--model", "model", "--images", "images", "--resolution", 16, "--batch-size", 2, *_CPU)

IN_TWO = ("encode-dataset", "eval", "fid-ref", "sample", "train-ae", "train-diffusion")  # those that take --nproc
SCENES = {
    "encode-dataset": Scene(
        _images_and_model,
        ("encode-dataset", "--images", "images", "--model", "model", "--resolution", 16, "--shard-size", 2, *_CPU,
         "--out", "latents"),
    ),
    "train-ae": Scene(
        _autoencoder_training, ("train-ae", "recipe.yaml", *_CPU), ("train-ae", "recipe.yaml", *_CPU, "--phase", "full")
    ),
    "train-diffusion": Scene(_diffusion_training, ("train-diffusion", "recipe.yaml", *_CPU)),
    "sample": Scene(
        lambda folder: write_diffusion(folder / "model"),
        (*_SAMPLE, *_CPU, "-o", "out", "--num", 4),
        (*_SAMPLE, *_CPU, "-o", "out", "--num", 2),
    ),
    "eval": Scene(
        _reference, (*_EVAL, "--psnr", "--ssim", "--fid", "--ref", "ref.npz", "--report", "report"),
        owns_output=False,
    ),
    "fid-ref": Scene(
        _images_and_model,
        ("fid-ref", "--images", "images", "--resolution", 16, *_CPU, "--out", "out/ref.npz"),
        ("fid-ref", "--images", "images/a", "--resolution", 16, *_CPU, "--out", "out/ref.npz"),
        owns_output=False,
    ),
    "convert": Scene(_write_model, ("convert", "model", "--to", "diffusers", "-o", "out"), owns_output=False),
    "reconstruct": Scene(_images_and_model, (*_RECONSTRUCT, "images"), (*_RECONSTRUCT, "images/a/0.png"), False),
}  # fmt: skip


def build(name: str, folder: Path) -> None:
    """Lay out a scene in an empty folder, with what an earlier call left."""
    folder.mkdir()
    SCENES[name].set_up(folder)
    if before := SCENES[name].before:
        outcome = run_scene(folder, *before)
        assert outcome.exit_code == 0, outcome.stderr


def restore(copy: Path, folder: Path) -> None:
    """Make `folder` what `copy` is, times included."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(copy, folder)


def read_tree(folder: Path) -> Tree:
    """The checksum of every file that a user sees, without what the clock decides; `cache` is the program's own."""
    return {name: sha256(_lasting(path)).hexdigest() for name, path in _files(folder)}


def leftovers(folder: Path) -> list[str]:
    """Half-written and half-removed files, which the next call that succeeds clears away."""
    return [str(path) for path in folder.rglob(".*") if path.name.endswith((".partial", ".replaced"))]


def assert_whole(folder: Path, before: Tree, after: Tree, spoilt: str = "") -> None:
    """Whatever lies there is as it was before or as it is at the end, and nothing of before that stays is lost.

    `spoilt` is a file that somebody else has changed meanwhile.
    """
    now = read_tree(folder)
    for name, checksum in now.items():
        if name in after and name != spoilt and Path(name).name not in _GROWS:
            assert checksum in (before.get(name), after[name]), f"{name} is neither the earlier file nor the last one"
    lost = (before.keys() & after.keys()) - now.keys()
    aside = {path.name.removeprefix(".").rsplit(".", 2)[0] for path in folder.rglob(".*.replaced")}
    assert not [name for name in lost if not aside & set(Path(name).parts)], f"lost: {lost}"


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_file() and parts[0] != "cache" and not any(part.startswith(".") for part in parts):
            yield "/".join(parts), path


def _lasting(path: Path) -> bytes:
    if path.name != "metrics.jsonl":
        return path.read_bytes()
    lines = []
    for line in path.read_text().splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue  # cut short by a kill
        lines.append(json.dumps({key: value for key, value in record.items() if key not in _OF_THE_CLOCK}))
    return "\n".join(lines).encode()
