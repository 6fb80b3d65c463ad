"""`dcae sample`: files, repetition, continuation, and bad input."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dcae_core import load_diffusion, sample
from dcae_core.errors import ResourceError, UsageError
from dcae_core.pipelines import sample_directory
from tests.diffusion_models import write_autoencoder, write_diffusion
from tests.golden import relative_error


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    directory = tmp_path_factory.mktemp("models")
    for kind in ("epsilon", "velocity", "epsilon_variance"):
        write_diffusion(directory / kind, kind)
    write_diffusion(directory / "imagenet", num_classes=1000)
    write_diffusion(directory / "unconditional", num_classes=0)
    return directory


def files_of(directory):
    return {
        file.relative_to(directory).as_posix(): file.read_bytes() for file in directory.rglob("*") if file.is_file()
    }


def test_images_grid_latents_and_report(dcae, models, tmp_path) -> None:
    out = tmp_path / "out"
    run = dcae(
        "sample", "--model", models / "imagenet", "--classes", "207,volcano,golden retriever", "--cfg", "1.5",
        "--steps", "3", "-o", out, "--save-latents", "--json",
    )  # fmt: skip
    run.assert_succeeds()
    names = {"0000_c207.png", "0001_c980.png", "0002_c207.png", "grid.png", "latents.safetensors", "sample.json"}
    assert {file.name for file in out.iterdir()} == names
    report = json.loads(run.stdout)
    assert (report["made"], report["kept"], report["classes"]) == (3, 0, [207, 980, 207])
    latents = load_file(out / "latents.safetensors")
    assert latents["latents"].shape == (3, 4, 8, 8)
    assert latents["classes"].tolist() == [207, 980, 207]
    library = load_diffusion(models / "imagenet").generate([207, 980, 207], 1.5, num_steps=3)
    assert relative_error(latents["latents"], library.latents) < 1e-5
    with Image.open(out / "grid.png") as grid, Image.open(out / "0002_c207.png") as third:
        assert grid.size == (128, 2 * (64 + 14))  # each row with a line of class names
        assert grid.crop((0, 78, 64, 142)).tobytes() == third.tobytes()
    assert str(tmp_path) not in (out / "sample.json").read_text()


def test_the_same_images_from_python(dcae, models, tmp_path) -> None:
    options = ("--cfg", "1.5", "--steps", "3", "--seed", "4", "-o", tmp_path / "out")
    dcae("sample", "--model", models / "imagenet", "--classes", "207,volcano", *options).assert_succeeds()
    settings = {"guidance_scale": 1.5, "num_steps": 3, "seed": 4}
    pipeline = load_diffusion(models / "imagenet")
    for model in (models / "imagenet", pipeline):
        drawn = sample(model, [207, "volcano"], **settings)
        for file, image in zip(("0000_c207.png", "0001_c980.png"), drawn, strict=True):
            with Image.open(tmp_path / "out" / file) as written:
                assert written.tobytes() == image.tobytes()
    assert len(sample(models / "unconditional", num=2, num_steps=1)) == 2
    with pytest.raises(UsageError, match=r"no class is called 'volcanoe'.*volcano"):
        sample(pipeline, ["volcanoe"])
    with pytest.raises(UsageError, match="classes or num"):
        sample(pipeline, [1], num=2)
    with pytest.raises(UsageError, match="no classes; give num"):
        sample(models / "unconditional", [1])


@pytest.mark.parametrize("kind", ["epsilon", "velocity", "epsilon_variance"])
def test_the_published_sampler_is_the_default(dcae, models, tmp_path, kind) -> None:
    run = dcae("sample", "--model", models / kind, "--num", "2", "-o", tmp_path / "out")
    run.assert_succeeds()
    assert "2 images" in run.stdout
    assert "images/s" in run.stdout


def test_an_interrupted_run_of_64_continues_to_the_same_bytes(dcae, models, tmp_path, monkeypatch) -> None:
    command = ("sample", "--model", models / "epsilon", "--num", "64", "--steps", "3", "--save-latents")
    dcae(*command, "-o", tmp_path / "whole").assert_succeeds()
    written = []

    def stop_at_the_29th(path, image):
        if len(written) == 29:
            raise KeyboardInterrupt
        written.append(path)
        original(path, image)

    original = sample_directory._write_png
    monkeypatch.setattr(sample_directory, "_write_png", stop_at_the_29th)
    assert dcae(*command, "-o", tmp_path / "stopped").exit_code == 130
    assert not (tmp_path / "stopped" / "grid.png").exists()
    monkeypatch.setattr(sample_directory, "_write_png", original)
    run = dcae(*command, "-o", tmp_path / "stopped", "--json")
    run.assert_succeeds()
    assert json.loads(run.stdout)["kept"] == 24
    assert files_of(tmp_path / "stopped") == files_of(tmp_path / "whole")
    again = dcae(*command, "-o", tmp_path / "stopped", "--json")
    assert json.loads(again.stdout)["made"] == 0
    assert files_of(tmp_path / "stopped") == files_of(tmp_path / "whole")


def test_more_samples_are_added_and_another_run_is_refused(dcae, models, tmp_path) -> None:
    out = tmp_path / "out"
    command = ("sample", "--model", models / "epsilon", "--steps", "3", "-o", out, "--json")
    dcae(*command, "--num", "8").assert_succeeds()
    before = files_of(out)
    run = dcae(*command, "--num", "12")
    run.assert_succeeds()
    assert json.loads(run.stdout)["kept"] == 8
    after = files_of(out)
    assert all(after[name] == before[name] for name in before if name[:4].isdecimal())
    dcae(*command, "--num", "12", "--seed", "1").assert_fails(2, "another seed", "-o")
    dcae(*command, "--num", "12", "--cfg", "2").assert_fails(2, "guidance_scale")
    dcae(*command, "--num", "12", "--batch-size", "5").assert_fails(2, "--batch-size 8")
    assert files_of(out) == after


def test_killed_and_continued_by_two_processes_it_ends_with_the_bytes_of_one(models, tmp_path) -> None:
    command = [sys.executable, "-m", "dcae_cli", "sample", "--model", models / "epsilon", "--num", "22"]
    command += ["--steps", "6", "--batch-size", "4", "--save-latents"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    out = tmp_path / "out"
    process = subprocess.Popen([*command, "-o", out], env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(out.glob("[0-9]*.png"))) < 9 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.wait()
    (out / ".0007_c1.png.99.partial").write_bytes(b"half")
    for file in out.glob("[0-9]*.png"):
        with Image.open(file) as image:
            image.load()
    for place, processes in ((out, "2"), (tmp_path / "whole", "1")):
        subprocess.run([*command, "--nproc", processes, "-o", place], env=environment, check=True, capture_output=True)
    assert files_of(out) == files_of(tmp_path / "whole")


def test_the_demo_preset_and_unconditional_names(dcae, models, tmp_path) -> None:
    run = dcae(
        "sample", "--model", models / "imagenet", "--preset", "demo", "--steps", "2", "-o", tmp_path / "demo", "--json"
    )
    run.assert_succeeds()
    report = json.loads(run.stdout)
    assert (len(report["classes"]), report["classes"][0], report["guidance_scale"]) == (16, 279, 6.0)
    dcae(
        "sample", "--model", models / "unconditional", "--num", "2", "--steps", "2", "-o", tmp_path / "u"
    ).assert_succeeds()
    assert (tmp_path / "u" / "0001.png").exists()


def test_another_autoencoder(dcae, models, tmp_path) -> None:
    four, eight = write_autoencoder(tmp_path / "four"), write_autoencoder(tmp_path / "eight", latent_channels=8)
    command = ("sample", "--model", models / "epsilon", "--num", "1", "--steps", "2", "-o", tmp_path / "out")
    dcae(*command, "--autoencoder", four).assert_succeeds()
    dcae(*command[:-1], tmp_path / "other", "--autoencoder", eight).assert_fails(
        3, "8 latent channels", "--autoencoder"
    )
    dcae(*command[:-1], tmp_path / "other", "--autoencoder", "dc-ae-f32").assert_fails(2, "did you mean")


@pytest.mark.parametrize(
    ("arguments", "exit_code", "words"),
    [
        (["--classes", "1000"], 2, ["1000", "0 to 999"]),
        (["--classes", "golden retreiver"], 2, ["golden retriever (207)"]),
        (["--classes", ""], 2, ["no class"]),
        (["--cfg", "strong"], 2, ["--cfg", "number"]),
        (["--cfg", "nan"], 2, ["guidance scale", "finite"]),
        (["--steps", "0"], 2, ["steps", "at least 1"]),
        (["--steps", "1001", "--sampler", "ddpm", "--num", "1"], 2, ["at most 1000"]),
        (["--num", "0"], 2, ["at least 1"]),
        (["--seed", "-1"], 2, ["seed"]),
        (["--sampler", "heun"], 2, ["heun does not fit", "dpm-solver", "ddim"]),
        (["--sampler", "dmp-solver"], 2, ["did you mean dpm-solver"]),
        (["--num", "2", "--classes", "3"], 2, ["one of --classes, --num and --preset"]),
        (["--preset", "demos"], 2, ["demo"]),
        (["--weights", "best"], 2, ["ema or raw"]),
        (["--dtype", "int8"], 2, ["fp32"]),
        (["--tile", "8"], 2, ["--tile 8", "32"]),
    ],
)  # fmt: skip
def test_bad_input_is_told_in_one_line(dcae, models, tmp_path, arguments, exit_code, words) -> None:
    run = dcae("sample", "--model", models / "imagenet", "-o", tmp_path / "out", *arguments)
    run.assert_fails(exit_code, *words)
    assert not list(tmp_path.rglob("*.png"))


def test_a_released_model_is_not_downloaded_for_a_command_that_cannot_work(dcae, tmp_path, monkeypatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    command = ("sample", "--model", "dc-ae-f32c32-in-1.0-usit-h-in-512px", "-o", tmp_path / "out")
    dcae(*command, "--classes", "1000").assert_fails(2, "0 to 999")
    dcae(*command, "--sampler", "ddim").assert_fails(2, "heun")
    dcae(*command, "--steps", "3").assert_fails(2, "chooses its own steps")
    dcae(*command).assert_fails(5, "dcae models download")


def test_no_model_and_wrong_models(dcae, models, tmp_path) -> None:
    dcae("sample", "--model", tmp_path).assert_fails(3, "no diffusion model")
    dcae("sample", "--model", "dc-ae-f32c32-in-1.0").assert_fails(2, "did you mean")
    dcae("sample", "--model", tmp_path / "missing" / "dir").assert_fails(3, "missing")


def test_no_memory_and_no_room(dcae, models, tmp_path, monkeypatch) -> None:
    from dcae_core.pipelines.generate import DiffusionPipeline

    def exhausted(*arguments, **keywords):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with monkeypatch.context() as patch:
        patch.setattr(DiffusionPipeline, "_guided", lambda *_: exhausted)
        run = dcae("sample", "--model", models / "epsilon", "--num", "2", "-o", tmp_path / "out")
        run.assert_fails(4, "out of memory", "--batch-size", "--dtype bf16")
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    dcae("sample", "--model", models / "epsilon", "--num", "1", "-o", blocked).assert_fails(
        ResourceError.exit_code, "file"
    )


def test_the_other_kind_of_model_is_called_by_its_name(dcae, tmp_path) -> None:
    dcae("sample", "--model", "dc-ae-f32c32-in-1.0", "-o", tmp_path).assert_fails(
        2, "is an autoencoder", "did you mean"
    )
    denoiser = "dc-ae-f32c32-in-1.0-uvit-s-in-512px"
    image = Path(__file__).parents[2] / "examples" / "test_images" / "rocket.png"
    dcae("reconstruct", image, "--model", denoiser, "-o", tmp_path).assert_fails(2, "is a diffusion model")
