"""Whose files are whose, what is lost when an output fails, and what surrounds the program."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dcae_cli.failures import describe_failure
from dcae_core.checkpoints import save_autoencoder
from dcae_core.errors import ResourceError
from dcae_core.files import lock
from tests.diffusion_models import write_diffusion
from tests.metrics.cheap_inception import CheapExtractor
from tests.small import small_autoencoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small models and six images."""
    folder = tmp_path_factory.mktemp("ownership")
    save_autoencoder(small_autoencoder(), folder / "model")
    write_diffusion(folder / "diffusion")
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    for number in range(6):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(folder / "images" / f"{number}.png")
    return folder


@pytest.fixture(autouse=True)
def surroundings(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    extractor = CheapExtractor()
    monkeypatch.setattr("dcae_core.pipelines.evaluation.fid_reference.load_inception", lambda *_, **__: extractor)


SAMPLE = ("sample", "--model", "diffusion", "--classes", "1,2", "--steps", 2, "--batch-size", 1, "--device", "cpu")
FID_REF = ("fid-ref", "--images", "images", "--resolution", 32, "--device", "cpu", "--out")
EVAL = ("eval", "--model", "model", "--images", "images", "--resolution", 32, "--device", "cpu")


@pytest.mark.parametrize("name", ["grid.png", "0000_c1.png", "latents.safetensors"])
def test_samples_do_not_replace_what_no_run_made(name: str, dcae, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"mine")
    dcae(*SAMPLE, "-o", tmp_path).assert_fails(2, name, "choose another -o")
    assert (tmp_path / name).read_bytes() == b"mine"
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_a_second_run_into_the_same_samples_is_refused(dcae, tmp_path: Path) -> None:
    with lock(tmp_path / ".lock", None):
        dcae(*SAMPLE, "-o", tmp_path).assert_fails(2, "another `dcae sample`", "choose another -o")
    assert [file.name for file in tmp_path.iterdir()] == [".lock"]
    dcae(*SAMPLE, "-o", tmp_path).assert_succeeds()
    assert not (tmp_path / ".lock").exists()


@pytest.mark.parametrize("name", ["0.recon.png", "0.compare.png"])
def test_a_reconstruction_does_not_replace_an_image_that_we_did_not_make(name: str, dcae, tmp_path: Path) -> None:
    own = tmp_path / "0.png"
    shutil.copy("images/0.png", own)
    shutil.copy("images/1.png", tmp_path / name)
    before = (tmp_path / name).read_bytes()
    command = ("reconstruct", own, "--model", "model", "--device", "cpu", "-o", tmp_path)
    dcae(*command).assert_fails(2, name, "was not made by dcae", "another -o")
    assert {file.name for file in tmp_path.iterdir()} == {"0.png", name}
    assert (tmp_path / name).read_bytes() == before
    (tmp_path / name).unlink()
    for _ in range(2):  # over its own results it goes as often as wanted
        dcae(*command, "--save-latents").assert_succeeds()
    decode = ("decode", tmp_path / "0.latent.safetensors", "--model", "model", "--device", "cpu", "-o", tmp_path)
    dcae(*decode).assert_succeeds()
    shutil.copy("images/1.png", tmp_path / "0.recon.png")
    dcae(*decode).assert_fails(2, "0.recon.png", "was not made by dcae")


def test_more_samples_do_not_replace_what_no_run_made(dcae, tmp_path: Path) -> None:
    dcae(*SAMPLE, "-o", tmp_path).assert_succeeds()
    (tmp_path / "0002_c3.png").write_bytes(b"mine")
    more = [argument if argument != "1,2" else "1,2,3" for argument in SAMPLE]
    dcae(*more, "-o", tmp_path).assert_fails(2, "0002_c3.png", "choose another -o")


@pytest.mark.parametrize("damage", [lambda content: content[:100], lambda content: b"junk", lambda content: b""])
@pytest.mark.parametrize("name", ["0001_c2.png", "latents.safetensors", "grid.png"])
def test_damaged_samples_are_made_again(damage: Callable[[bytes], bytes], name: str, dcae, tmp_path: Path) -> None:
    dcae(*SAMPLE, "--save-latents", "-o", tmp_path).assert_succeeds()
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(damage(whole))
    dcae(*SAMPLE, "--save-latents", "-o", tmp_path).assert_succeeds()
    assert (tmp_path / name).read_bytes() == whole


def test_a_sample_damaged_in_its_middle_is_named(dcae, tmp_path: Path) -> None:
    dcae(*SAMPLE, "-o", tmp_path).assert_succeeds()
    file = tmp_path / "0001_c2.png"
    content = file.read_bytes()
    file.write_bytes(content[:60] + bytes(200) + content[-12:])
    dcae(*SAMPLE, "-o", tmp_path).assert_fails(3, "0001_c2.png is damaged", "remove it")


def parts_in(cache: Path) -> list[Path]:
    return list(cache.rglob("part_*.safetensors"))


def test_parts_stay_where_the_result_could_not_be_told(tmp_path: Path) -> None:
    program = "import sys; sys.argv[0] = 'dcae'; from dcae_cli.__main__ import main; main()"
    with open("/dev/full", "w") as full:
        run = subprocess.run(
            [sys.executable, "-c", program, *map(str, EVAL), "--json"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
    assert run.returncode == 4, run.stderr
    assert run.stderr.count("dcae: the disk is full") == 1
    assert parts_in(tmp_path / "cache")


def test_parts_go_once_the_result_is_out(dcae, tmp_path: Path) -> None:
    dcae(*EVAL).assert_succeeds()
    assert not list((tmp_path / "cache").rglob("*.*"))


def test_a_reference_that_cannot_be_written_is_told_before_the_work(dcae, monkeypatch, tmp_path: Path) -> None:
    (tmp_path / "r.npz").mkdir()
    monkeypatch.setattr("dcae_core.pipelines.evaluation.fid_reference.find_once", lambda *_: pytest.fail("worked"))
    dcae(*FID_REF, tmp_path / "r.npz").assert_fails(4, "r.npz", "could not write")
    (tmp_path / "report").write_text("mine")
    dcae(*EVAL, "--report", tmp_path / "report").assert_fails(4, "report", "a file is in the way")


@pytest.mark.parametrize("command", ["eval", "fid-ref"])
def test_the_same_evaluation_twice_at_once_is_refused(command: str, dcae, monkeypatch, tmp_path: Path) -> None:
    from dcae_core.pipelines.evaluation import parts

    arguments = EVAL
    if command == "fid-ref":
        arguments = (*FID_REF, tmp_path / "r.npz")
    measure, refused = parts._measure_part, []

    def meanwhile(*given):
        monkeypatch.setattr(parts, "_measure_part", measure)
        refused.append(dcae(*arguments))
        return measure(*given)

    monkeypatch.setattr(parts, "_measure_part", meanwhile)
    dcae(*arguments).assert_succeeds()
    refused[0].assert_fails(2, "running already")


def test_a_lock_goes_with_whoever_holds_it(tmp_path: Path) -> None:
    with lock(tmp_path / ".lock", "in use"):
        pass
    with lock(tmp_path / ".lock", "in use"):
        pass


def test_a_file_system_without_locks_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(pytest.importorskip("fcntl"), "flock", flock)
    (tmp_path / ".lock").touch()  # from when the directory lay elsewhere
    with pytest.raises(ResourceError, match="has no locks"), lock(tmp_path / ".lock", "in use"):
        pass


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--steps", 10**9), "10,000"),
        (("--seed", 2**64), "2^63"),
        (("--num", 10**30), "number of samples"),
    ],
)
def test_numbers_beyond_reason_are_refused(arguments: tuple, words: str, dcae, tmp_path: Path) -> None:
    command = ("sample", "--model", "diffusion", "--device", "cpu", "-o", tmp_path / "out")
    dcae(*command, *arguments).assert_fails(2, words)
    assert not (tmp_path / "out").exists()


def test_classes_of_nonsense_are_refused(dcae, tmp_path: Path) -> None:
    dcae("sample", "--model", "diffusion", "--classes=--5", "-o", tmp_path / "out").assert_fails(2, "--5")


def test_a_batch_far_larger_than_the_data_is_refused(dcae, tmp_path: Path) -> None:
    dcae(
        "encode-dataset", "--images", "images", "--model", "model", "--resolution", 32, "--device", "cpu",
        "--batch-size", 100_000, "--out", tmp_path / "out",
    ).assert_fails(2, "batch size of 100,000", "6 images")  # fmt: skip


def test_a_tilde_is_the_home_directory(dcae, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    dcae("reconstruct", "images/0.png", "--model", "model", "--device", "cpu", "-o", "~/a").assert_succeeds()
    dcae("reconstruct", "images/0.png", "--model", "model", "--device", "cpu", "--output=~/b").assert_succeeds()
    assert {path.name for path in tmp_path.iterdir()} >= {"a", "b"}
    assert not Path("~").exists()


def test_a_working_directory_that_is_gone_is_told(dcae, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    run = dcae("sample", "--model", "x" * 3, "-o", "out")
    assert run.exit_code in (2, 3, 4, 5)
    assert run.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "exit_code", "words"),
    [
        (RuntimeError("Could not determine home directory."), 4, "HOME"),
        (RuntimeError("can't start new thread"), 4, "ulimit -u"),
        (OSError(24, "Too many open files", "x"), 4, "ulimit -n"),
        (FileNotFoundError(2, "No such file or directory"), 4, "working directory"),
        (ValueError("embedded null byte"), 2, "NUL"),
    ],
)
def test_what_surrounds_the_program_is_named(error: Exception, exit_code: int, words: str) -> None:
    message, code = describe_failure(error)
    assert code == exit_code
    assert words in message
