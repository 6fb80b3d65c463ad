import json
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

import dcae_core
from dcae_core.checkpoints import load_autoencoder, save_autoencoder
from dcae_core.data.images import center_crop_adm, image_to_uint8, open_image
from dcae_core.data.sources import ImageReference
from dcae_core.metrics.reconstruction import psnr
from dcae_core.models.autoencoder import Autoencoder
from dcae_core.models.inference import prepare_for_inference
from dcae_core.pipelines import encode
from dcae_core.pipelines.image_inputs import name_outputs
from dcae_core.pipelines.tiling import reconstruct_pixels
from tests.small import small_autoencoder


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """Two small autoencoders, f4, called `a` and `b`."""
    directory = tmp_path_factory.mktemp("models")
    save_autoencoder(small_autoencoder(0), directory / "a")
    save_autoencoder(small_autoencoder(1), directory / "b")
    return directory


def write_image(path: Path, width: int = 50, height: int = 37) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = np.linspace(0, 200, height)[:, None, None] + np.linspace(0, 50, width)[None, :, None]
    Image.fromarray((rows + np.array([0, 2, 5])).astype(np.uint8)).save(path)
    return path


def pixels_of(path: Path) -> torch.Tensor:
    return image_to_uint8(open_image(path))


def test_an_image_comes_back_in_its_size_with_its_figures(dcae, models, tmp_path) -> None:
    image = write_image(tmp_path / "odd name é.png")
    run = dcae("reconstruct", image, "--model", models / "a", "-o", tmp_path / "out", "--json")
    run.assert_succeeds()
    assert run.stderr == ""
    (result,) = json.loads(run.stdout)["results"]
    expected = reconstruct_pixels(load_autoencoder(models / "a"), pixels_of(image))
    written = pixels_of(tmp_path / "out" / "odd name é.recon.png")
    assert torch.equal(written, expected.pixels)
    assert result["files"] == {
        "reconstruction": str(tmp_path / "out" / "odd name é.recon.png"),
        "comparison": str(tmp_path / "out" / "odd name é.compare.png"),
    }
    assert (result["width"], result["height"], result["latent"]) == (50, 37, [8, 10, 13])
    assert result["compression"] == pytest.approx(3 * 50 * 37 / (8 * 10 * 13))
    assert result["psnr"] == pytest.approx(float(psnr(pixels_of(image)[None], written[None])))
    assert 0 < result["ssim"] < 1
    assert result["milliseconds"] > 0


def test_the_page_shows_every_image_under_a_slider_for_each_model(dcae, models, tmp_path):
    names = ("a.png", "<b onload=x>.png")
    for name in names:
        write_image(tmp_path / "images" / name)
    given = ("--model", models / "a", "--model", models / "b", "-o", tmp_path / "out", "--no-compare", "--report")
    run = dcae("reconstruct", tmp_path / "images", *given)
    run.assert_succeeds()
    assert f"look at {tmp_path / 'out' / 'report.html'}" in run.stdout
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count('class="viewer"') == 4
    assert page.count("data:image/jpeg;base64,") == 8
    assert "<b onload" not in page
    assert "&lt;b onload=x&gt;.png" in page
    assert not re.search(r"(src|href)=\"(?!data:)", page), "it needs no other file"
    dcae("reconstruct", tmp_path / "images", *given).assert_succeeds()
    assert (tmp_path / "out" / "report.html").read_text().count('class="viewer"') == 4


def test_python_gives_the_bytes_that_the_command_writes(dcae, models, tmp_path):
    image = write_image(tmp_path / "image.png")
    dcae("reconstruct", image, "--model", models / "a", "-o", tmp_path / "out", "--device", "cpu").assert_succeeds()
    ours = dcae_core.reconstruct_image(dcae_core.load_autoencoder(models / "a"), image)
    assert ours.tobytes() == open_image(tmp_path / "out" / "image.recon.png").tobytes()


def test_the_table_has_a_row_for_each_image_and_the_mean(dcae, models, tmp_path) -> None:
    for name in ("1.png", "2.png"):
        write_image(tmp_path / "in" / name)
    run = dcae("reconstruct", tmp_path / "in", "--model", models / "a", "-o", tmp_path / "out", "--no-compare")
    run.assert_succeeds()
    lines = run.stdout.splitlines()
    assert lines[0].split("  ")[0] == "image"
    images = [str(tmp_path / "in" / name) for name in ("1.png", "2.png")]
    assert [line.split("  ")[0] for line in lines[1:4]] == [*images, "mean of 2"]
    assert "50 x 37" in lines[1]
    assert "8 x 10 x 13" in lines[1]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["1.recon.png", "2.recon.png"]
    as_json = dcae("reconstruct", tmp_path / "in", "--model", models / "a", "-o", tmp_path / "out", "--json")
    document = json.loads(as_json.stdout)
    (mean,) = document["means"]
    assert (mean["model"], mean["num_images"]) == ("a", 2)
    assert mean["psnr"] == pytest.approx(sum(result["psnr"] for result in document["results"]) / 2)


def test_several_models_are_set_side_by_side(dcae, models, tmp_path) -> None:
    image = write_image(tmp_path / "p.png", 300, 200)
    arguments = ("--model", models / "a", "--model", models / "b", "--model", models / "a", "-o", tmp_path / "out")
    run = dcae("reconstruct", image, *arguments, "--json")
    run.assert_succeeds()
    assert [result["model"] for result in json.loads(run.stdout)["results"]] == ["a", "b", "a#2"]
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["p.a#2.recon.png", "p.a.recon.png", "p.b.recon.png", "p.compare.png"]
    first, other, again = (pixels_of(tmp_path / "out" / f"p.{name}.recon.png") for name in ("a", "b", "a#2"))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    comparison = Image.open(tmp_path / "out" / "p.compare.png")
    assert comparison.width >= 4 * 300
    assert comparison.height >= 2 * 200


def test_latents_are_kept_with_what_they_are_and_decode_to_the_same_bytes(dcae, models, tmp_path) -> None:
    image = write_image(tmp_path / "p.png")
    settings = ("--model", models / "a", "--tile", 32)
    dcae("reconstruct", image, *settings, "-o", tmp_path / "out", "--save-latents").assert_succeeds()
    latent = tmp_path / "out" / "p.latent.safetensors"
    with safe_open(latent, framework="pt") as file:
        metadata, tensor = file.metadata(), file.get_tensor("latent")
    assert (tensor.shape, tensor.dtype) == ((8, 10, 13), torch.float32)
    assert metadata["model"] == str(models / "a")
    sizes = {key: metadata[key] for key in ("height", "width", "padding_bottom", "padding_right", "tile")}
    assert sizes == {"height": "37", "width": "50", "padding_bottom": "3", "padding_right": "2", "tile": "32"}

    run = dcae("decode", latent, "-o", tmp_path / "decoded", "--json")
    run.assert_succeeds()
    assert json.loads(run.stdout)["results"][0]["model"] == "a"
    assert (tmp_path / "decoded" / "p.recon.png").read_bytes() == (tmp_path / "out" / "p.recon.png").read_bytes()


def test_latents_of_the_embedded_model_name_it_too(dcae, tmp_path) -> None:
    image = write_image(tmp_path / "p.png")
    dcae("reconstruct", image, "-o", tmp_path, "--save-latents", "--no-compare").assert_succeeds()
    with safe_open(tmp_path / "p.latent.safetensors", framework="pt") as file:
        assert file.metadata()["model"] == "dc-ae-f32c32-tiny-1.0"
    dcae("decode", tmp_path / "p.latent.safetensors", "-o", tmp_path / "out").assert_succeeds()
    assert (tmp_path / "out" / "p.recon.png").read_bytes() == (tmp_path / "p.recon.png").read_bytes()


def test_a_latent_is_not_decoded_by_other_weights_of_the_same_shape(dcae, models, tmp_path) -> None:
    image = write_image(tmp_path / "p.png")
    dcae("reconstruct", image, "--model", models / "a", "-o", tmp_path / "out", "--save-latents").assert_succeeds()
    latent = tmp_path / "out" / "p.latent.safetensors"
    dcae("decode", latent, "--model", models / "b", "-o", tmp_path).assert_fails(3, str(latent), str(models / "a"))


def test_samples_are_decoded_one_by_one(dcae, models, tmp_path) -> None:
    latents = torch.randn(3, 8, 4, 5, generator=torch.Generator().manual_seed(0))
    save_file({"latents": latents, "classes": torch.tensor([1, 2, 3])}, tmp_path / "latents.safetensors")
    arguments = ("--model", models / "a", "-o", tmp_path / "out")
    dcae("decode", tmp_path / "latents.safetensors", *arguments).assert_succeeds()
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["latents_0000.recon.png", "latents_0001.recon.png", "latents_0002.recon.png"]
    assert Image.open(tmp_path / "out" / names[0]).size == (20, 16)


def test_in_a_batch_of_latents_the_bad_one_is_reported(dcae, models, tmp_path) -> None:
    good = write_image(tmp_path / "p.png")
    dcae("reconstruct", good, "--model", models / "a", "-o", tmp_path, "--save-latents").assert_succeeds()
    bad = tmp_path / "bad.latent.safetensors"
    save_file({"latent": torch.full((8, 2, 2), torch.nan)}, bad, {"height": "8", "width": "8", "model": "x"})
    run = dcae("decode", bad, tmp_path / "p.latent.safetensors", "-o", tmp_path / "out")
    assert run.exit_code == 3
    assert str(bad) in run.stderr
    assert (tmp_path / "out" / "p.recon.png").exists()


def test_the_published_crop_comes_first_if_asked_for(dcae, models, tmp_path) -> None:
    image = write_image(tmp_path / "p.png", 100, 60)
    arguments = ("--model", models / "a", "-o", tmp_path / "out", "--resolution", 32)
    dcae("reconstruct", image, *arguments).assert_succeeds()
    cropped = image_to_uint8(center_crop_adm(open_image(image), 32))
    expected = reconstruct_pixels(load_autoencoder(models / "a"), cropped).pixels
    assert torch.equal(pixels_of(tmp_path / "out" / "p.recon.png"), expected)


@pytest.mark.parametrize("size", [(1, 1), (1, 400), (401, 3)])
def test_odd_sizes_work(dcae, models, tmp_path, size) -> None:
    image = write_image(tmp_path / "p.png", *size)
    dcae("reconstruct", image, "--model", models / "a", "-o", tmp_path / "out").assert_succeeds()
    assert Image.open(tmp_path / "out" / "p.recon.png").size == size
    Image.open(tmp_path / "out" / "p.compare.png").load()


def test_images_of_one_name_do_not_overwrite_each_other(dcae, models, tmp_path) -> None:
    for name in ("cats/1.png", "dogs/1.png", "dogs/2.png"):
        write_image(tmp_path / "in" / name)
    inputs = (tmp_path / "in", write_image(tmp_path / "elsewhere" / "2.png"))
    dcae("reconstruct", *inputs, "--model", models / "a", "-o", tmp_path / "out", "--no-compare").assert_succeeds()
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["2.png.recon.png", "cats_1.png.recon.png", "dogs_1.png.recon.png", "dogs_2.png.recon.png"]


def test_names_of_outputs_are_different_even_where_the_paths_are_the_same() -> None:
    keys = ["a/x.png", "b/x.jpg", "x.png", "x.png", "y.png", "a_x.png"]
    names = name_outputs([ImageReference(f"/somewhere/{key}", key) for key in keys])
    assert names == ["a_x.png", "b_x.jpg", "x.png", "x.png-2", "y", "a_x"]
    assert len(set(names)) == len(names)


def test_orientation_is_applied_unless_told_otherwise(dcae, models, tmp_path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20), "red").save(tmp_path / "p.jpg", exif=exif)
    arguments = ("reconstruct", tmp_path / "p.jpg", "--model", models / "a", "-o", tmp_path)
    dcae(*arguments).assert_succeeds()
    assert Image.open(tmp_path / "p.recon.png").size == (20, 40)
    dcae(*arguments, "--no-exif").assert_succeeds()
    assert Image.open(tmp_path / "p.recon.png").size == (40, 20)


def test_the_pixel_limit_can_be_set(dcae, models, tmp_path) -> None:
    image = write_image(tmp_path / "p.png")
    arguments = ("reconstruct", image, "--model", models / "a", "-o", tmp_path)
    dcae(*arguments, "--max-pixels", 1000).assert_fails(3, str(image), "1,850 pixels", "--max-pixels")


def test_weights_that_give_nan_end_the_run(dcae, tmp_path) -> None:
    network = small_autoencoder()
    with torch.no_grad():
        network.decoder.head.out.bias.fill_(3e38)
        network.decoder.head.out.weight.fill_(3e38)
    save_autoencoder(network, tmp_path / "broken")
    images = [write_image(tmp_path / "in" / name) for name in ("1.png", "2.png")]
    run = dcae("reconstruct", *images, "--model", tmp_path / "broken", "-o", tmp_path / "out")
    run.assert_fails(3, "NaN")


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_in_the_middle_it_keeps_what_is_finished_and_leaves_nothing_half(
    dcae, models, tmp_path, monkeypatch, number, exit_code
) -> None:
    images = [write_image(tmp_path / f"{name}.png") for name in "abc"]
    real, calls = Autoencoder.decode, []

    def stop_at_the_second(network, latent):
        calls.append(latent)
        if len(calls) == 2:
            signal.raise_signal(number)
        return real(network, latent)

    monkeypatch.setattr(Autoencoder, "decode", stop_at_the_second)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        run = dcae("reconstruct", *images, "--model", models / "a", "-o", tmp_path / "out")
    finally:
        signal.signal(signal.SIGINT, handler)
    assert run.exit_code == exit_code
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.compare.png", "a.recon.png"]


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_gives_nearly_the_same(dcae, models, tmp_path, dtype) -> None:
    image = write_image(tmp_path / "p.png")
    arguments = ("reconstruct", image, "--model", models / "a", "-o", tmp_path / dtype, "--dtype", dtype)
    dcae(*arguments).assert_succeeds()
    expected = reconstruct_pixels(load_autoencoder(models / "a"), pixels_of(image)).pixels
    written = pixels_of(tmp_path / dtype / "p.recon.png")
    assert float(psnr(expected[None], written[None])) > 30


def test_plain_gives_the_same_image_without_preparation(dcae, tmp_path, monkeypatch) -> None:
    prepared: list[object] = []

    def note(network):
        prepared.append(network)
        return prepare_for_inference(network)

    monkeypatch.setattr(encode, "prepare_for_inference", note)
    image = write_image(tmp_path / "a.png", 256, 192)
    dcae("reconstruct", image, "-o", tmp_path / "prepared").assert_succeeds()
    assert len(prepared) == 1
    dcae("reconstruct", image, "-o", tmp_path / "plain", "--plain").assert_succeeds()
    assert len(prepared) == 1
    fast, plain = (pixels_of(tmp_path / name / "a.recon.png").int() for name in ("prepared", "plain"))
    assert (fast - plain).abs().max() <= 1


def names_in(run) -> list[str]:
    return [Path(result["image"]).name for result in json.loads(run.stdout)["results"]]


def test_outputs_never_become_inputs(dcae, models, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_image(tmp_path / "a.png")
    write_image(tmp_path / "sub" / "b.png")
    arguments = ("--model", models / "a", "--json")
    for _ in range(2):  # in a directory of its own
        assert names_in(dcae("reconstruct", ".", "-o", "out", *arguments)) == ["a.png", "b.png"]
    write_image(tmp_path / "out" / "renamed.png")
    run = dcae("reconstruct", ".", "-o", "out", *arguments)
    assert names_in(run) == ["a.png", "b.png"]
    assert "left out 5 results of earlier runs (.recon.png, .compare.png, or in out)\n" in run.stderr
    for _ in range(2):  # among the images
        assert names_in(dcae("reconstruct", ".", "**/*.png", "-o", ".", *arguments))[:2] == ["a.png", "renamed.png"]
    by_the_shell = sorted(str(path) for path in tmp_path.glob("*.png"))
    assert len(by_the_shell) > 3
    assert names_in(dcae("reconstruct", *by_the_shell, "-o", tmp_path, *arguments)) == ["a.png"]


def test_a_result_that_is_named_is_taken_and_results_alone_are_explained(dcae, models, tmp_path) -> None:
    image = write_image(tmp_path / "a.png")
    dcae("reconstruct", image, "--model", models / "a", "-o", tmp_path / "out").assert_succeeds()
    result = tmp_path / "out" / "a.recon.png"
    assert names_in(dcae("reconstruct", result, "--model", models / "a", "-o", tmp_path / "again", "--json")) == [
        "a.recon.png"
    ]
    run = dcae("reconstruct", result, "--model", models / "a", "-o", tmp_path / "out")
    run.assert_fails(3, "nothing but results of `dcae reconstruct`", "another -o")


def test_the_crop_is_said_and_enlarging_is_warned_of(dcae, models, tmp_path) -> None:
    images = write_image(tmp_path / "small.png", 50, 37), write_image(tmp_path / "large.png", 200, 100)
    arguments = ("--model", models / "a", "-o", tmp_path / "out")
    whole = dcae("reconstruct", *images, *arguments)
    assert "images: whole, neither cut nor resized\n" in whole.stdout
    assert "warning" not in whole.stderr
    cut = dcae("reconstruct", *images, *arguments, "--resolution", 64)
    cut.assert_succeeds()
    assert "images: the central square of each, its short side brought to 64 pixels" in cut.stdout
    assert cut.stderr.splitlines()[-1].startswith("dcae: warning: 1 of 2 images are smaller than 64 pixels")
    document = json.loads(dcae("reconstruct", *images, *arguments, "--resolution", 64, "--json").stdout)
    assert [result["enlarged"] for result in document["results"]] == [True, False]
    assert "64 pixels" in document["crop"]
    assert len(document["warnings"]) == 1


def test_the_time_of_the_first_image_is_without_its_warm_up(dcae, models, tmp_path, monkeypatch) -> None:
    images = [write_image(tmp_path / f"{name}.png") for name in "ab"]
    real, calls, clock = Autoencoder.encode, [], [0.0]

    def slow_at_first(network, x):
        calls.append(x)
        clock[0] += 1.0 if len(calls) == 1 else 0.25
        return real(network, x)

    monkeypatch.setattr(Autoencoder, "encode", slow_at_first)
    monkeypatch.setattr("dcae_core.pipelines.image_files.time.perf_counter", lambda: clock[0])
    run = dcae("reconstruct", *images, "--model", models / "a", "-o", tmp_path / "out", "--json")
    assert [result["milliseconds"] for result in json.loads(run.stdout)["results"]] == [250, 250]
    assert len(calls) == 3, "the first image alone is computed again"


def test_tiles_of_one_image_are_shown(dcae, models, tmp_path, monkeypatch) -> None:
    image = write_image(tmp_path / "p.png", 128, 64)
    monkeypatch.setattr("dcae_cli.progress.SECONDS_BETWEEN_LINES", 0.0)
    run = dcae("reconstruct", image, "--model", models / "a", "-o", tmp_path / "out", "--tile", 32)
    assert "a: encoding tile 1/15" in run.stderr
    assert "a: decoding tile 15/15" in run.stderr
    assert "left" in run.stderr


def test_tiles_of_one_latent_are_shown(dcae, models, tmp_path, monkeypatch) -> None:
    image = write_image(tmp_path / "p.png", 128, 64)
    arguments = ("--model", models / "a", "-o", tmp_path / "out", "--tile", 32, "--save-latents")
    dcae("reconstruct", image, *arguments).assert_succeeds()
    monkeypatch.setattr("dcae_cli.progress.SECONDS_BETWEEN_LINES", 0.0)
    run = dcae("decode", tmp_path / "out" / "p.latent.safetensors", "-o", tmp_path / "decoded")
    assert "p.latent.safetensors: tile 1/15" in run.stderr


def test_no_two_outputs_have_one_name() -> None:
    keys = ["a/b.png", "a_b.png.png", "c/b.png", "a_b.png-2.png", "a_b.png-2.jpg", "a/b.png", "a/b.png"]
    names = name_outputs([ImageReference(f"/images/{key}", key) for key in keys])
    assert len(set(names)) == len(keys)
