"""Weights that are damaged, hostile or another network's: one line, exit code 3, nothing run, nothing written."""

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dcae_core.checkpoints import save_autoencoder
from tests.small import small_autoencoder

WEIGHTS = "diffusion_pytorch_model.safetensors"
A_KEY = "decoder.conv_in.bias"


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """A whole directory with checksums."""
    directory = tmp_path_factory.mktemp("models") / "good"
    save_autoencoder(small_autoencoder(), directory, layout="diffusers")
    return directory


@pytest.fixture
def model(good, tmp_path) -> Path:
    """A copy of the files that diffusers itself would write: no checksums, so that the contents are looked at."""
    directory = tmp_path / "model"
    directory.mkdir()
    for name in ("config.json", WEIGHTS):
        (directory / name).write_bytes((good / name).read_bytes())
    return directory


@pytest.fixture
def convert(dcae, tmp_path):
    """Read a model in the shell's way; check that a refusal leaves nothing behind."""

    def run(model: object):
        result = dcae("convert", model, "--to", "dcae", "-o", tmp_path / "converted")
        assert (tmp_path / "converted").exists() == (result.exit_code == 0)
        return result

    return run


def change_tensors(model: Path, change) -> None:
    tensors = load_file(model / WEIGHTS)
    change(tensors)
    save_file(tensors, model / WEIGHTS, metadata={"format": "pt"})


def test_the_untouched_copy_is_accepted(convert, model) -> None:
    convert(model).assert_succeeds()


def test_a_missing_tensor_is_named(convert, model) -> None:
    change_tensors(model, lambda tensors: tensors.pop(A_KEY))
    convert(model).assert_fails(3, str(model), "missing", "decoder.stem.conv.bias")


def test_an_extra_tensor_is_named(convert, model) -> None:
    change_tensors(model, lambda tensors: tensors.update(surprise=torch.zeros(1)))
    convert(model).assert_fails(3, str(model), "unexpected", "surprise")


def test_a_wrong_shape_is_named(convert, model) -> None:
    change_tensors(model, lambda tensors: tensors.update({A_KEY: torch.zeros(7)}))
    convert(model).assert_fails(3, str(model), "(7,)", "(32,)")


def test_nan_weights_are_named(convert, model) -> None:
    change_tensors(model, lambda tensors: tensors[A_KEY].fill_(float("nan")))
    convert(model).assert_fails(3, str(model), "NaN", A_KEY)


@pytest.mark.parametrize("kept", [0, 4, 1000, 0.5])
def test_a_truncated_file_is_damaged(convert, model, kept) -> None:
    content = (model / WEIGHTS).read_bytes()
    (model / WEIGHTS).write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    convert(model).assert_fails(3, str(model / WEIGHTS), "damaged")


def test_one_flipped_bit_is_seen_where_a_checksum_is_known(convert, good, model) -> None:
    (model / "dcae.json").write_bytes((good / "dcae.json").read_bytes())
    content = bytearray((model / WEIGHTS).read_bytes())
    content[len(content) // 2] ^= 1
    (model / WEIGHTS).write_bytes(content)
    convert(model).assert_fails(3, str(model / WEIGHTS), "damaged", "SHA-256")


@pytest.mark.parametrize(
    "content", ["", "<!doctype html>", "[1, 2]", '{"model_name": "dall-e"}', '{"a": ' + "[" * 9999]
)
def test_a_config_that_says_nothing_is_refused(convert, model, content) -> None:
    (model / "config.json").write_text(content)
    convert(model).assert_fails(3, str(model / "config.json"))


def test_a_directory_without_weights_says_which_file_is_missing(convert, model) -> None:
    (model / WEIGHTS).unlink()
    convert(model).assert_fails(3, str(model), WEIGHTS)


class _Attack:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


@pytest.mark.parametrize("save", [torch.save, lambda attack, path: path.write_bytes(pickle.dumps(attack))])
def test_a_malicious_pickle_is_refused_and_never_run(convert, tmp_path, save) -> None:
    target = tmp_path / "owned"
    path = tmp_path / "model.pt"
    save({"state_dict": {"weight": torch.zeros(1), "attack": _Attack(target)}}, path)
    convert(path).assert_fails(3, str(path))
    assert not target.exists()
    torch.load(path, weights_only=False) if save is torch.save else pickle.loads(path.read_bytes())
    assert target.exists(), "the attack itself does not work, so this test shows nothing"


def test_text_named_pt_is_refused(convert, tmp_path) -> None:
    path = tmp_path / "model.pt"
    path.write_text("<!doctype html><title>404</title>")
    convert(path).assert_fails(3, str(path))


def test_a_path_that_does_not_exist_is_data_at_fault(convert, tmp_path) -> None:
    convert(tmp_path / "nowhere" / "model").assert_fails(3, "nowhere")


def test_an_unknown_name_suggests_the_nearest(convert) -> None:
    convert("dc-ae-f32c32-in").assert_fails(2, "dc-ae-f32c32-in-1.0")
