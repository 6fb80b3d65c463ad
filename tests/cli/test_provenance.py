"""What belongs together carries fingerprints: whatever does not fit is refused, or warned about, never mixed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from dcae_core.checkpoints import load_autoencoder, save_autoencoder
from dcae_core.data.latents import LatentDataset, LatentDatasetWriter, verify_dataset
from dcae_core.errors import DataError, DownloadError
from dcae_core.training.run_directory import RunDirectory
from tests.diffusion_models import write_autoencoder, write_diffusion
from tests.latents.datasets import plan
from tests.metrics.cheap_inception import CheapExtractor
from tests.small import small_autoencoder
from tests.training.small_diffusion import write_latents
from tests.training.small_runs import phase, recipe_for

RECIPE = """
command: train-diffusion
run_dir: {run_dir}
latents: {latents}
autoencoder: {autoencoder}
network: {{architecture: uvit, hidden_size: 16, depth: 2, num_heads: 2}}
objective: velocity
steps: 2
batch_size: 4
optimiser: {{learning_rate: 1e-3}}
sampling: null
"""


def write_images(folder: Path, count: int = 6, seed: int = 0) -> Path:
    for number in range(count):
        place = folder / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed + number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.bmp")
    return folder


def write_model(directory: Path, seed: int = 0, factor: float = 0.5) -> Path:
    network = small_autoencoder(seed)
    network.scaling_factor = factor
    save_autoencoder(network, directory, layout="dcae")
    return directory


def write_recipe(file: Path, **changes: object) -> Path:
    values = {"run_dir": "run", "latents": "latents", "autoencoder": "model"} | changes
    file.write_text(RECIPE.format(**values))
    return file


def change_weights(file: Path) -> None:
    """The same names and shapes, other values."""
    tensors = {name: value * 1.5 for name, value in load_file(file).items()}
    save_file(tensors, file, {"format": "pt"})


@pytest.fixture
def trained(dcae, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory to work in: `images`, `model`, `latents` made by it, and `run`, a diffusion model on them."""
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "images")
    write_model(tmp_path / "model")
    encode(dcae, "latents").assert_succeeds()
    dcae("train-diffusion", write_recipe(tmp_path / "recipe.yaml"), "--device", "cpu").assert_succeeds()
    return tmp_path


def encode(dcae, out: object, *, model: object = "model", images: object = "images"):
    options = ("--images", images, "--model", model, "--resolution", 16, "--shard-size", 2, "--device", "cpu")
    return dcae("encode-dataset", *options, "--out", out)


def sample(dcae, *arguments: object, num: int = 2):
    return dcae("sample", "--num", num, "--sampler", "euler", "--steps", 1, "--device", "cpu", *arguments)


# Samples: a directory holds those of one model.


def test_samples_of_another_model_are_not_added_to_those_that_lie_there(dcae, tmp_path: Path) -> None:
    for place in ("first", "second"):
        write_diffusion(tmp_path / place / "model")
    change_weights(tmp_path / "second" / "model" / "model.safetensors")
    command = ("sample", "--steps", 2, "--num", 2, "-o", tmp_path / "out")
    dcae(*command, "--model", tmp_path / "first" / "model").assert_succeeds()
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    again = dcae(*command[:3], "--num", 3, *command[5:], "--model", tmp_path / "second" / "model")
    again.assert_fails(2, "another", "weights", "choose another -o")
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before


def test_samples_of_a_model_whose_weights_were_replaced_are_refused_and_those_of_its_copy_are_not(
    dcae, tmp_path: Path
) -> None:
    model = write_diffusion(tmp_path / "model")
    command = ("sample", "--steps", 2, "-o", tmp_path / "out", "--model")
    dcae(*command, model, "--num", 2).assert_succeeds()
    shutil.copytree(model, tmp_path / "copy")
    dcae(*command, tmp_path / "copy", "--num", 3).assert_succeeds()
    change_weights(model / "model.safetensors")
    dcae(*command, model, "--num", 4).assert_fails(2, "weights")


def test_samples_through_another_autoencoder_are_refused(dcae, tmp_path: Path) -> None:
    model = write_diffusion(tmp_path / "model")
    command = ("sample", "--steps", 2, "--num", 2, "-o", tmp_path / "out", "--model", model, "--autoencoder")
    other = write_autoencoder(tmp_path / "other")
    dcae(*command, other).assert_succeeds()
    network = load_autoencoder(other, prepare=False)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.1)
    save_autoencoder(network, other, layout="dcae")
    run = dcae(*command, other)
    assert run.exit_code == 2
    assert "autoencoder" in run.stderr.splitlines()[-1]


def test_a_record_written_before_fingerprints_goes_on(dcae, tmp_path: Path) -> None:
    model = write_diffusion(tmp_path / "model")
    dcae("sample", "--model", model, "--num", 2, "-o", tmp_path / "out").assert_succeeds()
    record = {
        "model": "model", "autoencoder": None, "weights": "ema", "sampler": None, "num_steps": None,
        "guidance_scale": 1.0, "seed": 0, "dtype": "float32", "tile": None, "batch_size": 2,
    }  # fmt: skip
    written = json.loads((tmp_path / "out" / "sample.json").read_text())
    record["classes"] = written["classes"]
    (tmp_path / "out" / "sample.json").write_text(json.dumps(record))
    dcae("sample", "--model", model, "--num", 3, "-o", tmp_path / "out").assert_succeeds()
    assert json.loads((tmp_path / "out" / "sample.json").read_text())["model_fingerprint"]
    (tmp_path / "out" / "sample.json").write_text(json.dumps(record))
    dcae("sample", "--model", model, "--num", 3, "--sampler", "ddim", "-o", tmp_path / "out").assert_fails(2, "sampler")


def test_the_record_says_what_was_left_out(dcae, tmp_path: Path) -> None:
    model = write_diffusion(tmp_path / "models" / "mine", num_classes=1000)
    out = tmp_path / "samples" / "first"
    dcae("sample", "--model", model, "--classes", "207,volcano", "-o", out).assert_succeeds()
    record = json.loads((out / "sample.json").read_text())
    assert (record["sampler"], record["num_steps"]) == ("dpm-solver", 30)
    assert (out / record["model_path"]).resolve() == model.resolve()
    assert (out / record["autoencoder_path"]).resolve() == tmp_path / "models" / "mine-autoencoder"
    assert len(record["model_fingerprint"]) == len(record["autoencoder_fingerprint"]) == 64
    assert record["class_names"] == {"207": "golden retriever", "980": "volcano"}


def test_class_names_stand_under_the_images_of_the_grid(dcae, tmp_path: Path) -> None:
    model = write_diffusion(tmp_path / "named", num_classes=2)
    described = json.loads((model / "dcae.json").read_text())
    described["diffusion"]["class_names"] = ["cats", "dogs"]
    (model / "dcae.json").write_text(json.dumps(described))
    dcae("sample", "--model", model, "--classes", "cats,dogs", "--steps", 2, "-o", tmp_path / "out").assert_succeeds()
    with Image.open(tmp_path / "out" / "grid.png") as grid, Image.open(tmp_path / "out" / "0000_c0.png") as first:
        assert grid.crop((0, 0, *first.size)).tobytes() == first.convert("RGB").tobytes()
        below = np.asarray(grid.crop((0, first.height, first.width, grid.height)))
        assert grid.height > first.height
        assert below.min() < 128 < below.max()  # ink on paper


# Autoencoders: latents are decoded by the one that made them.


def test_an_autoencoder_that_was_replaced_after_the_training_is_refused(dcae, trained: Path) -> None:
    sample(dcae, "--model", "run", "-o", "before").assert_succeeds()
    write_model(trained / "model", seed=1)
    sample(dcae, "--model", "run", "-o", "after").assert_fails(3, "model", "other weights", "--autoencoder")
    assert not (trained / "after").exists()


def test_another_autoencoder_that_is_asked_for_is_warned_about(dcae, trained: Path) -> None:
    other = write_model(trained / "other", seed=1)
    run = sample(dcae, "--model", "run", "-o", "out", "--autoencoder", other)
    run.assert_succeeds()
    assert "warning" in run.stderr
    assert "other weights" in run.stderr
    same = sample(dcae, "--model", "run", "-o", "same", "--autoencoder", "model")
    same.assert_succeeds()
    assert "warning" not in same.stderr


def test_a_run_finds_its_autoencoder_from_anywhere(dcae, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample(dcae, "--model", "run", "-o", "here").assert_succeeds()
    elsewhere = trained / "else" / "where"
    elsewhere.mkdir(parents=True)
    write_model(elsewhere / "model", seed=1)  # of the same name, and another
    monkeypatch.chdir(elsewhere)
    sample(dcae, "--model", trained / "run", "-o", "there").assert_succeeds()
    for file in (trained / "here").glob("0*.png"):
        assert file.read_bytes() == (elsewhere / "there" / file.name).read_bytes()


def test_a_run_that_moved_with_its_autoencoder_finds_it(dcae, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (trained / "moved").mkdir()
    for name in ("run", "model"):
        shutil.move(trained / name, trained / "moved" / name)
    sample(dcae, "--model", "moved/run", "-o", "out").assert_succeeds()
    shutil.move(trained / "moved" / "run", trained / "alone")
    sample(dcae, "--model", "alone", "-o", "none").assert_fails(3, "model", "--autoencoder")


def test_training_without_samples_proves_the_autoencoder_too(dcae, trained: Path) -> None:
    other = write_model(trained / "other" / "model", seed=1)  # of the same name
    recipe = write_recipe(trained / "second.yaml", run_dir="second", autoencoder=other)
    refused = dcae("train-diffusion", recipe, "--device", "cpu")
    assert refused.exit_code == 3
    for words in ("made by model", "autoencoder: DIR", "encode again"):
        assert words in refused.stderr.splitlines()[-1]


def test_a_description_written_before_fingerprints_still_samples(dcae, trained: Path) -> None:
    values = json.loads((trained / "run" / "dcae.json").read_text())
    known = {"config", "prediction", "autoencoder", "scaling_factor", "class_names"}
    values["diffusion"] = {key: value for key, value in values["diffusion"].items() if key in known}
    (trained / "run" / "dcae.json").write_text(json.dumps(values))
    sample(dcae, "--model", "run", "-o", "out").assert_succeeds()


@pytest.mark.parametrize("names", [["a", "b", "c"], ["a"], [1, 2], {"a": 0, "b": 1}, "ab", ["a", None]])
def test_class_names_of_wrong_kinds_are_refused(dcae, trained: Path, names: object) -> None:
    values = json.loads((trained / "run" / "dcae.json").read_text())
    values["diffusion"]["class_names"] = names
    (trained / "run" / "dcae.json").write_text(json.dumps(values))
    sample(dcae, "--model", "run", "-o", "out").assert_fails(3, "class_names")


# Images: what was made of them is not taken for made of others.


def test_changed_images_under_the_same_names_are_not_taken_for_the_encoded_ones(dcae, trained: Path) -> None:
    encode(dcae, "latents").assert_succeeds()
    for file in (trained / "images").rglob("*.bmp"):
        os.utime(file, (1, 1))
    encode(dcae, "latents").assert_succeeds()  # the same content, whatever its age
    write_images(trained / "images", seed=100)
    encode(dcae, "latents").assert_fails(2, "images", "changed", "another --out", "remove")


def test_a_dataset_written_before_goes_on(dcae, trained: Path) -> None:
    manifest = json.loads((trained / "latents" / "manifest.json").read_text())
    before = {key: value for key, value in manifest["encoding"].items() if "content" not in key}
    assert before != manifest["encoding"]
    manifest["encoding"] = before
    del manifest["encoder"]["encoder_fingerprint"]
    (trained / "latents" / "manifest.json").write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    encode(dcae, "latents").assert_succeeds()
    dataset = LatentDataset(trained / "latents")
    assert dataset.manifest.to_json() == (trained / "latents" / "manifest.json").read_text()
    recipe = write_recipe(trained / "second.yaml", run_dir="second")
    dcae("train-diffusion", recipe, "--device", "cpu").assert_succeeds()


def test_a_folder_without_images_is_named(dcae, trained: Path) -> None:
    (trained / "images" / "aa").mkdir()
    run = encode(dcae, "second")
    run.assert_succeeds()
    assert "aa" in run.stderr
    assert "no image" in run.stderr


@pytest.fixture
def stopped_training(dcae, tmp_path: Path) -> Path:
    """A recipe whose first phase is trained."""
    recipe = recipe_for(tmp_path, phase(), phase("latent_adaptation"))
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe.model_dump(mode="json")))
    dcae("train-ae", tmp_path / "recipe.yaml", "--device", "cpu", "--phase", "full").assert_succeeds()
    return tmp_path


def test_a_training_does_not_go_on_with_other_images(dcae, stopped_training: Path) -> None:
    for file in sorted((stopped_training / "images").iterdir())[::2]:
        file.unlink()
    command = ("train-ae", stopped_training / "recipe.yaml", "--device", "cpu")
    dcae(*command).assert_fails(2, "images", "--allow-changed-data")
    run = dcae(*command, "--allow-changed-data")
    run.assert_succeeds()
    lines = [json.loads(line) for line in (stopped_training / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "changed_data" in line] == [4]
    dcae(*command).assert_succeeds()  # what was allowed once is the run's set from now on


def test_a_training_whose_checkpoint_knows_no_images_goes_on(dcae, stopped_training: Path) -> None:
    checkpoint = RunDirectory(stopped_training / "run").latest()
    state = json.loads((checkpoint / "state.json").read_text())
    assert state.pop("data")
    (checkpoint / "state.json").write_text(json.dumps(state))
    (checkpoint / "checksums.json").unlink()  # there were none either
    for file in sorted((stopped_training / "images").iterdir())[::2]:
        file.unlink()
    dcae("train-ae", stopped_training / "recipe.yaml", "--device", "cpu").assert_succeeds()


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    extractor = CheapExtractor()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("dcae_core.pipelines.evaluation.evaluate.load_inception", lambda *_, **__: extractor)
    monkeypatch.setattr("dcae_core.pipelines.evaluation.fid_reference.load_inception", lambda *_, **__: extractor)


@pytest.mark.parametrize("resolution", [("--resolution", 16), ()])
def test_fid_against_a_reference_of_another_resolution_is_warned_about(
    dcae, cheap, tmp_path: Path, resolution: tuple[object, ...]
) -> None:
    write_images(tmp_path / "images")
    dcae("fid-ref", "--images", tmp_path / "images", *resolution, "--out", tmp_path / "ref.npz").assert_succeeds()
    for file in (tmp_path / "images").rglob("*.bmp"):
        with Image.open(file) as image:
            (tmp_path / "large").mkdir(exist_ok=True)
            image.resize((24, 24)).save(tmp_path / "large" / file.name)
    command = ("eval", "--fid", "--ref", tmp_path / "ref.npz", "--generated")
    wrong = dcae(*command, tmp_path / "large", "--report", tmp_path / "report")
    wrong.assert_succeeds()
    for words in (wrong.stderr, (tmp_path / "report" / "index.html").read_text()):
        assert "16x16" in words
        assert "24x24" in words
    right = dcae(*command, tmp_path / "images")
    right.assert_succeeds()
    assert "16x16" not in right.stderr


# Latent files.


def reconstruct(dcae, image: Path, out: Path, model: object):
    return dcae("reconstruct", image, "--model", model, "--save-latents", "--no-compare", "-o", out)


def test_two_latent_files_of_one_name_become_two_images(dcae, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    files = []
    for number, place in enumerate(("x", "y")):
        folder = write_images(tmp_path / place, count=1, seed=number)
        reconstruct(dcae, folder / "a" / "0.bmp", tmp_path / place / "out", model).assert_succeeds()
        files.append(tmp_path / place / "out" / "0.latent.safetensors")
    run = dcae("decode", *files, "-o", tmp_path / "decoded", "--json")
    run.assert_succeeds()
    written = [result["file"] for result in json.loads(run.stdout)["results"]]
    assert len(set(written)) == len(list((tmp_path / "decoded").iterdir())) == 2
    for file, latents in zip(written, files, strict=True):
        assert Path(file).read_bytes() == (latents.parent / "0.recon.png").read_bytes()


def test_a_latent_file_cannot_make_decode_ask_the_hub(dcae, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_model(tmp_path / "model")
    folder = write_images(tmp_path / "images", count=1)
    reconstruct(dcae, folder / "a" / "0.bmp", tmp_path / "out", model).assert_succeeds()
    file = tmp_path / "out" / "0.latent.safetensors"
    content = file.read_bytes()
    asked = []

    def ask(repository: str, *_: object, offline: bool = False, **__: object) -> Path:
        if not offline:
            asked.append(repository)
        raise DownloadError("not here")

    monkeypatch.setattr("dcae_core.checkpoints.hub.fetch_files", ask)
    for stranger in ("somebody/model", "runs/gone"):
        tensors = load_file(file)
        metadata = {"model": stranger, "fingerprint": "a" * 64, "height": "16", "width": "16", "tile": ""}
        save_file(tensors, tmp_path / "strange.latent.safetensors", metadata)
        run = dcae("decode", tmp_path / "strange.latent.safetensors", "-o", tmp_path / "decoded")
        run.assert_fails(3, stranger, "--model")
    assert asked == []
    file.write_bytes(content)
    dcae("decode", file, "-o", tmp_path / "decoded").assert_succeeds()


def test_telemetry_is_off() -> None:
    code = "import dcae_core, huggingface_hub.constants as c; print(c.HF_HUB_DISABLE_TELEMETRY)"
    environment = {key: value for key, value in os.environ.items() if "TELEMETRY" not in key and key != "DO_NOT_TRACK"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert run.stdout.strip() == "True"


def test_saved_latents_have_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    code = (
        "import sys, torch; from pathlib import Path; from dcae_core.data.latent_file import Origin, save_latent;"
        "save_latent(Path(sys.argv[1]), torch.zeros(2, 3, 4), Origin(9, 12, 'm', 'f' * 64, None), 4)"
    )
    contents = set()
    for number in range(4):
        file = tmp_path / f"{number}.safetensors"
        subprocess.run([sys.executable, "-c", code, str(file)], check=True)
        contents.add(file.read_bytes())
    assert len(contents) == 1


# Latent datasets: the manifest is proved, not believed.


def write_dataset(directory: Path) -> Path:
    write_latents(directory)
    return directory


def edit_manifest(directory: Path, change: object) -> None:
    file = directory / "manifest.json"
    manifest = json.loads(file.read_text())
    change(manifest)
    file.write_text(json.dumps(manifest))


def set_in(*path: object):
    *places, name, value = path

    def change(manifest):
        for place in places:
            manifest = manifest[place]
        manifest[name] = value

    return change


EDITS = {
    "negative shape": set_in("latent_shape", [8, -4, 4]),
    "shape of zero": set_in("latent_shape", [8, 0, 4]),
    "other shape": set_in("latent_shape", [4, 8, 4]),
    "other dtype": set_in("dtype", "float16"),
    "infinite scaling factor": set_in("encoder", "scaling_factor", float("inf")),
    "classes removed": set_in("classes", ["class 0", "class 1"]),
    "no classes": set_in("classes", []),
    "infinite statistics": set_in("statistics", "channel_mean_square", [float("inf")] * 8),
    "statistics of other channels": set_in("statistics", "channel_mean", [0.0] * 3),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_an_edited_manifest_is_found_out_before_training(dcae, tmp_path: Path, edit) -> None:
    latents = write_dataset(tmp_path / "latents")
    dcae("encode-dataset", "--verify", latents).assert_succeeds()
    edit_manifest(latents, edit)
    dcae("encode-dataset", "--verify", latents).assert_fails(3, "latents")
    recipe = write_recipe(
        tmp_path / "recipe.yaml", run_dir=tmp_path / "run", latents=latents, autoencoder="dc-ae-f32c32-tiny-1.0"
    )
    run = dcae("train-diffusion", recipe, "--device", "cpu")
    assert run.exit_code == 3, run.stderr
    assert not list((tmp_path / "run").rglob("step_*"))


@pytest.mark.parametrize("label", [-1, 3, 4])
def test_labels_outside_the_classes_are_found_out(tmp_path: Path, label: int) -> None:
    writer = LatentDatasetWriter(tmp_path, plan([2]))
    writer.begin()
    writer.write_shard(0, torch.zeros(2, 4, 2, 3, dtype=torch.float16), torch.tensor([0, label]), ["x", "y"], [])
    writer.finish()
    faults = verify_dataset(tmp_path)[1]
    assert len(faults) == 1
    assert "label" in faults[0]
    with pytest.raises(DataError, match="label"):
        LatentDataset(tmp_path).read([1])
