"""`dcae eval` and `dcae fid-ref` from the shell."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from dcae_core.checkpoints import save_autoencoder
from dcae_core.pipelines import pages
from dcae_core.pipelines.evaluation import report
from tests.metrics.cheap_inception import CheapExtractor
from tests.small import small_autoencoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A small model and seven images, one of them damaged, in a directory to run in."""
    folder = tmp_path_factory.mktemp("eval")
    save_autoencoder(small_autoencoder(), folder / "model")
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    for number in range(7):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8), "RGB")
        coarse.resize((40, 40), Image.Resampling.BICUBIC).save(folder / "images" / f"{number}.png")
    (folder / "images" / "3.png").write_bytes(b"")
    return folder


@pytest.fixture(autouse=True)
def in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    extractor = CheapExtractor()
    monkeypatch.setattr("dcae_core.pipelines.evaluation.evaluate.load_inception", lambda *_, **__: extractor)
    monkeypatch.setattr("dcae_core.pipelines.evaluation.fid_reference.load_inception", lambda *_, **__: extractor)


COMMON = ("--model", "model", "--images", "images", "--resolution", 32, "--batch-size", 2, "--device", "cpu")


def test_a_table_with_its_origins_and_what_was_left_out(dcae) -> None:
    run = dcae("eval", *COMMON)
    run.assert_succeeds()
    for word in ("PSNR (dB)", "SSIM", "latent rms", "6 images", "efficientvit: 8-bit, per image", "n = 6"):
        assert word in run.stdout
    assert "3.png is empty" in run.stderr


def test_json_carries_everything(dcae) -> None:
    run = dcae("eval", *COMMON, "--psnr", "--json")
    run.assert_succeeds()
    document = json.loads(run.stdout)
    assert document["scores"]["psnr"]["num_images"] == 6
    assert document["scores"]["psnr"]["value"] == pytest.approx(np.mean(document["per_image"]["psnr"]))
    assert document["images"] == [f"{number}.png" for number in range(7) if number != 3]
    assert document["settings"]["resolution"] == 32
    assert len(document["settings"]["network"]) == 64


@pytest.mark.parametrize(("written", "meant"), [("float32", "fp32"), ("bfloat16", "bf16"), ("float16", "fp16")])
def test_a_number_type_may_be_written_in_full(dcae, written: str, meant: str) -> None:
    run = dcae("eval", *COMMON, "--psnr", "--json", "--dtype", written)
    run.assert_succeeds()
    assert json.loads(run.stdout)["settings"]["autoencoder"]["dtype"] == meant


def test_three_processes_give_the_number_of_one(folder: Path) -> None:
    documents = []
    for count in (1, 3):
        command = [sys.executable, "-m", "dcae_cli", "eval", *map(str, COMMON), "--json", "--nproc", str(count)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}  # the number of threads moves a result by more than this
        run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert run.returncode == 0, run.stderr
        documents.append(json.loads(run.stdout))  # the main process alone prints
    alone, shared = documents
    assert shared["images"] == alone["images"]
    for name in ("psnr", "ssim"):
        assert shared["scores"][name]["value"] == pytest.approx(alone["scores"][name]["value"], rel=1e-9)


def test_published_figures_stand_beside_the_measured_ones(dcae, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "command: eval\nautoencoder: {model: model}\nimages: images\nresolution: 32\nmetrics: [psnr, ssim]\n"
        "expected:\n  psnr: {value: 8, tolerance: 100, source: here}\n"
        "  ssim: {value: 5, tolerance: 0.1, source: here}\n  fid: {value: 1, tolerance: 0.1, source: here}\n"
    )
    run = dcae("eval", recipe, "--device", "cpu")
    run.assert_succeeds()
    lines = {line.split("  ")[0]: line for line in run.stdout.splitlines()}
    assert lines["PSNR (dB)"].endswith("same")
    assert lines["SSIM"].endswith("differs")
    assert lines["FID"].endswith("not measured")
    assert "8 ± 100" in lines["PSNR (dB)"]


def test_the_report_is_one_page_that_needs_nothing_else(dcae, tmp_path: Path) -> None:
    report = tmp_path / "report"
    run = dcae("eval", *COMMON, "--report", report, "--json")
    run.assert_succeeds()
    assert json.loads(run.stdout)["report"] == str(report / "index.html")
    page = (report / "index.html").read_text()
    assert "linear-gradient(90deg, rgb(0, 0, 0), " in page
    assert page.count("data:image/jpeg;base64,") == 3 * 6  # three best, median and worst of six: all of them once
    assert "http" not in page.replace("http-equiv", "")
    assert "<script" not in page
    assert "prefers-color-scheme: dark" in page
    assert page.count("<svg") == 5  # histogram and sorted values of PSNR and SSIM, latent channels
    assert "3.png is empty" in page
    before = page
    dcae("eval", *COMMON, "--report", report).assert_succeeds()
    assert (report / "index.html").read_text() == before
    assert json.loads((report / "evaluation.json").read_text())["num_images"] == 6


def test_the_page_is_a_template_beside_the_code_and_every_class_has_its_style(dcae, tmp_path: Path) -> None:
    dcae("eval", *COMMON, "--report", tmp_path / "report").assert_succeeds()
    page = (tmp_path / "report" / "index.html").read_text()
    assert page.startswith("<!doctype html>\n<html")
    assert "</" not in Path(report.__file__).read_text()
    style = (Path(pages.__file__).parent / "templates" / "page.css").read_text()
    used = {name for names in re.findall(r'class="([^"]*)"', page) for name in names.split()}
    assert {"image", "trio", "bar", "dot", "span", "score"} <= used
    assert {name for name in used if not re.search(rf"\.{name}\b", style)} == set()


def test_a_name_is_neither_markup_nor_template(dcae, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for name in ("{{ 7 * 191 }}'\" onload=x.png", "b.png"):
        Image.new("RGB", (32, 32), "red").save(images / name)
    dcae("eval", *COMMON, "--images", images, "--report", tmp_path / "report").assert_succeeds()
    page = (tmp_path / "report" / "index.html").read_text()
    assert "1337" not in page
    assert "{{ 7 * 191 }}&#39;&#34; onload=x.png" in page
    assert '" onload' not in page


def test_names_are_text_in_the_report(dcae, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (32, 32), "red").save(images / "<img src=x onerror=alert(1)>.png")
    Image.new("RGB", (32, 32), "blue").save(images / "b.png")
    dcae("eval", *COMMON, "--images", images, "--report", tmp_path / "report").assert_succeeds()
    page = (tmp_path / "report" / "index.html").read_text()
    assert "<img src=x" not in page
    assert "&lt;img src=x" in page


def test_a_reference_made_here_is_at_distance_zero_from_its_images(dcae, cheap, tmp_path: Path) -> None:
    reference = tmp_path / "mine.npz"
    run = dcae("fid-ref", "--images", "images", "--resolution", 32, "--out", reference, "--device", "cpu", "--json")
    run.assert_succeeds()
    facts = json.loads(run.stdout)
    assert (facts["num_images"], facts["num_damaged"], facts["resolution"]) == (6, 1, 32)
    run = dcae(
        "eval", "--generated", "images", "--resolution", 32, "--fid", "--is", "--ref", reference, "--json",
        "--set", "batch_size=4",
    )  # fmt: skip
    assert run.exit_code == 3  # six images are too few for an Inception Score
    assert "at least 10 images, got 6" in run.stderr
    run = dcae("eval", "--generated", "images", "--resolution", 32, "--ref", reference, "--json")
    run.assert_succeeds()
    fid = json.loads(run.stdout)["scores"]["fid"]
    assert abs(fid["value"]) < 1e-6
    assert fid["reference_sha256"] == facts["sha256"]
    assert "fewer than 2048 features" in run.stderr


def test_transparency_and_tf32_are_told(dcae, cheap, tmp_path: Path) -> None:
    """Dropped transparency changes the statistics; the file and the evaluation say which rule was theirs."""
    (tmp_path / "clear").mkdir()
    for number in range(3):
        Image.new("RGBA", (32, 32), (40 * number, 99, 7, 0)).save(tmp_path / "clear" / f"{number}.png")
    references = {}
    for rule in ("white", "drop"):
        out = tmp_path / f"{rule}.npz"
        run = dcae("fid-ref", "--images", tmp_path / "clear", "--out", out, "--alpha", rule, "--json")
        run.assert_succeeds()
        assert json.loads(run.stdout)["alpha"] == rule
        references[rule] = np.load(out)["mu"]
    assert np.abs(references["white"] - references["drop"]).max() > 0.1
    options = ("--generated", tmp_path / "clear", "--ref", tmp_path / "drop.npz")
    run = dcae("eval", *options, "--alpha", "drop", "--tf32", "--report", tmp_path / "report", "--json")
    run.assert_succeeds()
    document = json.loads(run.stdout)
    assert abs(document["scores"]["fid"]["value"]) < 1e-6
    assert document["settings"]["alpha"] == "drop"
    assert document["settings"]["execution"]["tf32"] is True
    assert "execution.tf32" in (tmp_path / "report" / "index.html").read_text()
    assert "TF32" in dcae("eval", *options, "--alpha", "drop", "--tf32").stdout
    assert "TF32" not in dcae("eval", *options, "--alpha", "drop").stdout
    dcae("eval", *options, "--alpha", "grey").assert_fails(2, "alpha")
    dcae("fid-ref", "--images", "images", "--out", "r.npz", "--alpha", "grey").assert_fails(
        2, "--alpha is white or drop"
    )


@pytest.mark.parametrize("rule", ["half_pixel", "tensorflow"])
def test_a_reference_is_compared_with_by_its_own_rule(dcae, cheap, tmp_path: Path, rule: str) -> None:
    """Zero from its own images by either rule, without being told; by the other one not, and that is warned of."""
    reference, other = tmp_path / "mine.npz", {"half_pixel": "tensorflow", "tensorflow": "half_pixel"}[rule]
    images = ("--resolution", 32, "--device", "cpu")
    dcae("fid-ref", "--images", "images", *images, "--out", reference, "--resize", rule).assert_succeeds()
    run = dcae("eval", "--generated", "images", *images, "--ref", reference, "--json")
    fid = json.loads(run.stdout)["scores"]["fid"]
    assert abs(fid["value"]) < 1e-6
    assert ("TensorFlow 1" in fid["resize"]) == (rule == "tensorflow")
    run = dcae("eval", "--generated", "images", *images, "--ref", reference, "--resize", other, "--json")
    assert json.loads(run.stdout)["scores"]["fid"]["value"] > 1e-3
    assert f"resized by the rule {rule}, these by {other}" in run.stderr


@pytest.mark.parametrize("name", ["VIRTUAL_imagenet512.npz", "adm.npz", "efficientvit.npz"])
def test_adms_files_are_known_by_their_name_or_their_spatial_statistics(dcae, cheap, tmp_path: Path, name: str) -> None:
    """Files that do not say the rule: ADM's were resized as TensorFlow 1 does, others as the published code does."""
    images, of_adm = ("--resolution", 32, "--device", "cpu"), name != "efficientvit.npz"
    rule = "tensorflow" if of_adm else "half_pixel"
    dcae("fid-ref", "--images", "images", *images, "--out", tmp_path / "made.npz", "--resize", rule).assert_succeeds()
    arrays = {key: np.load(tmp_path / "made.npz")[key] for key in ("mu", "sigma")}
    spatial = {"mu_s": np.zeros(2023), "sigma_s": np.eye(2023)} if name == "adm.npz" else {}
    np.savez(tmp_path / name, **arrays, **spatial)
    report = tmp_path / "report"
    run = dcae("eval", "--generated", "images", *images, "--ref", tmp_path / name, "--json", "--report", report)
    fid = json.loads(run.stdout)["scores"]["fid"]
    assert abs(fid["value"]) < 1e-6
    assert ("as TensorFlow 1" in fid["resize"]) == of_adm
    assert ("as TensorFlow 1" in (report / "index.html").read_text()) == of_adm


def test_a_rule_that_nobody_knows_is_refused(dcae, cheap, tmp_path: Path) -> None:
    np.savez(tmp_path / "odd.npz", mu=np.zeros(2048), sigma=np.eye(2048), resize=np.array("by hand"))
    run = dcae("eval", "--generated", "images", "--resolution", 32, "--ref", tmp_path / "odd.npz")
    run.assert_fails(3, "resized by an unknown rule: 'by hand'")
    dcae("eval", *COMMON, "--fid", "--resize", "lanczos").assert_fails(2, "resize")
    dcae("fid-ref", "--images", "images", "--out", "r.npz", "--resize", "lanczos").assert_fails(
        2, "--resize is half_pixel"
    )


def test_bad_input_gets_one_line(dcae, folder: Path, tmp_path: Path) -> None:
    dcae("eval", "--model", "nothing", "--images", "images").assert_fails(2, "unknown model 'nothing'")
    dcae("eval", *COMMON, "--images", "nowhere").assert_fails(3, "nowhere: no such file or folder")
    dcae("eval", "autoencoder-f64c128-in").assert_fails(3, "imagenet/val, which is not here: give --images DIR")
    dcae("eval", "autoencoder-f64").assert_fails(2, "did you mean")
    dcae("eval", "--generated", "images").assert_fails(2, "give a file of `dcae fid-ref`")
    dcae("eval", "--generated", "images", "--psnr").assert_fails(2, "psnr compare reconstructions")
    dcae("eval", "--generated", "images", "--cfg", 2).assert_fails(2, "belong to a diffusion model")
    dcae("eval", *COMMON, "--damaged", "ignore").assert_fails(2, "damaged")
    dcae("eval", *COMMON, "--dtype", "int8").assert_fails(2, "dtype")
    dcae("eval", *COMMON, "--set", "metricss=[psnr]").assert_fails(2, "metricss: unknown key")
    dcae("eval", *COMMON, "--fid", "--ref", "none.npz").assert_fails(3, "make one: dcae fid-ref")
    dcae("fid-ref", "--images", "images", "--out", "ref").assert_fails(2, "ends in .npz")
    dcae("fid-ref", "--images", "images", "--out", "r.npz", "--dtype", "bf16").assert_fails(2, "float32")
    dcae("fid-ref", "--images", "images").assert_fails(2, "--out", "dcae fid-ref --images imagenet/val")
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"half a file")
    options = ("--inception-weights", weights)
    dcae("eval", *COMMON, "--fid", *options).assert_fails(3, "weights.pth cannot be read as weights")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    dcae("eval", *COMMON, "--fid", "--inception-weights", tmp_path / "other.safetensors").assert_fails(
        3, "is not the Inception network of 2015-12-05"
    )


def test_offline_without_weights_is_a_download_error(dcae, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    dcae("eval", *COMMON, "--fid").assert_fails(5, "pt_inception-2015-12-05-6726825d.pth", "put it at")
    dcae("eval", *COMMON, "--lpips").assert_fails(5, "alexnet-owt-7be5be79.pth", "put it at")


def test_a_folder_as_reference_is_compared_with_by_every_metric(dcae, cheap, folder: Path, tmp_path: Path) -> None:
    arguments = ("eval", "--generated", "images", "--resolution", 32, "--ref", "images", "--json")
    fid = json.loads(dcae(*arguments).stdout)["scores"]["fid"]
    assert abs(fid["value"]) < 1e-6
    assert fid["reference"] == "6 images in images"
    other = tmp_path / "other"
    other.mkdir()
    for number in range(5):
        Image.new("RGB", (40, 40), (50 * number, 0, 0)).save(other / f"{number}.png")
    run = dcae(
        "eval", "--generated", "images", "--resolution", 32, "--ref", other, "--fid", "--precision-recall", "--json"
    )
    run.assert_succeeds()
    assert json.loads(run.stdout)["scores"]["fid"]["value"] > 0.01
    assert "recall" in json.loads(run.stdout)["scores"]


def test_a_folder_as_reference_is_measured_once(dcae, cheap, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(5):
        Image.new("RGB", (40, 40), (50 * number, 0, 0)).save(folder / f"{number}.png")
    metrics = ("--fid", "--frechet", "--precision-recall")
    command = ("eval", "--generated", "images", "--resolution", 32, *metrics, "--ref", folder)

    def measure(count: int, *options: object, is_kept: bool = False) -> dict:
        run = dcae(*command, *options, "--json")
        run.assert_succeeds()
        assert (f"reference of {count} images from the cache" in run.stderr) is is_kept
        assert ("measure the reference" in run.stderr) is not is_kept
        return json.loads(run.stdout)["scores"]

    first = measure(5)
    assert measure(5, is_kept=True) == first
    # What was measured depends on these.
    measure(5, "--resize", "tensorflow")
    measure(5, "--alpha", "drop")
    measure(5, "--resolution", 16)
    assert measure(5, is_kept=True) == first

    kept = sorted((tmp_path / "cache" / "dcae" / "references").iterdir())
    assert len(kept) == 4
    for file in kept:
        content = bytearray(file.read_bytes())
        content[-9] ^= 1
        file.write_bytes(content)
    assert measure(5) == first
    for file in kept:
        file.write_bytes(b"nothing")
    assert measure(5) == first

    Image.new("RGB", (40, 40), (0, 0, 250)).save(folder / "5.png")
    assert measure(6)["fid"]["value"] != first["fid"]["value"]
    measure(6, is_kept=True)
    assert sorted((tmp_path / "cache" / "dcae" / "references").iterdir()) == kept
    assert not list((tmp_path / "cache" / "dcae" / "evaluations").iterdir())

    for number in range(1, 6):
        (folder / f"{number}.png").unlink()
    dcae(*command).assert_fails(3, f"{folder} holds one image")


def test_the_crop_is_said_and_enlarging_is_warned_of(dcae, tmp_path: Path) -> None:
    run = dcae("eval", *COMMON)
    assert "images: the central square of each, its short side brought to 32 pixels" in run.stdout
    assert "enlarged" not in run.stderr
    large = dcae("eval", *COMMON, "--resolution", 64, "--report", tmp_path / "report")
    line = "6 of 6 images are smaller than 64 pixels and were enlarged"
    assert f"dcae: warning: {line}" in large.stderr
    assert line in (tmp_path / "report" / "index.html").read_text()
    document = json.loads((tmp_path / "report" / "evaluation.json").read_text())
    assert document["crop"].startswith("the central square of each")


def test_no_part_of_the_report_is_wider_than_a_phone(dcae, tmp_path: Path) -> None:
    published = "expected={psnr: {value: 99, tolerance: 1, source: nowhere}}"  # two columns more
    dcae("eval", *COMMON, "--set", published, "--report", tmp_path / "report").assert_succeeds()
    page = (tmp_path / "report" / "index.html").read_text()
    assert 'data-label="published">99 ± 1' in page  # what a phone shows instead of the heads of columns
    styles = page[page.index("<style>") : page.index("</style>")]
    assert "overflow-x" not in page  # what must be swiped at stays unseen
    for name in set(re.findall(r"\.([a-z-]+)[ ,:{]", styles)) - {"same", "differs", "warning", "samples", "long"}:
        assert re.search(rf'class="[^"]*\b{name}\b', page), f"a rule for .{name}, which is nowhere"


def test_success_has_no_prefix(dcae, tmp_path: Path) -> None:
    run = dcae("eval", *COMMON, "--report", tmp_path / "report")
    assert f"\nthe report is {tmp_path}" in run.stderr
    assert "dcae: the report" not in run.stderr


def test_images_of_kinds_that_are_not_read_are_counted(dcae, folder: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    shutil.copytree(folder / "images", images)
    for name in ("a.cr2", "b.CR2", "c.jxl", "notes.doc"):
        (images / name).write_bytes(b"x")
    line = "dcae: warning: left out 2 .cr2, 1 .jxl: kinds of images that are not read; convert them to JPEG or PNG"
    commands = (
        ("eval", *COMMON, "--images", images),
        ("encode-dataset", "--model", "model", "--images", images, "--out", tmp_path / "latents", "--resolution", 32),
        ("reconstruct", images / "0.png", images, "--model", "model", "-o", tmp_path / "out"),
    )
    for command in commands:
        assert line in dcae(*command).stderr
    only = tmp_path / "only"
    only.mkdir()
    (only / "a.cr2").write_bytes(b"x")
    dcae("reconstruct", only).assert_fails(3, "no image in this folder", "left out 1 .cr2")
