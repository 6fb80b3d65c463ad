"""The Inception graph against torch-fidelity's recorded outputs and pytorch-fid's live graph, same random weights."""

from pathlib import Path

import numpy as np
import pytest
import pytorch_fid.inception as peer_module
import torch
from safetensors.torch import load_file, save_file

from dcae_core.errors import CheckpointError, DataError, DownloadError
from dcae_core.files import sha256_of_file
from dcae_core.metrics.inception import (
    NUM_SPATIAL_FEATURES,
    InceptionExtractor,
    load_inception,
    resize_for_fid,
    resize_for_inception_score,
)
from tests.metrics.inception_weights import random_inception_state

# torch-fidelity 0.4.0, FeatureExtractorInceptionV3 ("2048" and "logits_unbiased"), two images per size.
RECORDED = Path(__file__).parent.parent / "fixtures" / "metrics" / "torch_fidelity_inception.safetensors"
SIZES = [(299, 299), (64, 64), (200, 333)]


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inception") / "weights.safetensors"
    save_file(random_inception_state(), path)
    return path


@pytest.fixture(scope="module")
def extractor(weights_file: Path) -> InceptionExtractor:
    return load_inception(weights_file)


def images(height: int, width: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(height).integers(0, 256, (2, 3, height, width), dtype=np.uint8))


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_inception_score_path_is_torch_fidelitys(extractor: InceptionExtractor, height: int, width: int) -> None:
    recorded = load_file(RECORDED)
    logits = extractor(images(height, width), with_logits=True).logits
    assert logits is not None
    assert relative_error(logits, recorded[f"logits.{height}x{width}"]) < 1e-5


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_fid_path_is_pytorch_fids(
    extractor: InceptionExtractor, monkeypatch: pytest.MonkeyPatch, height: int, width: int
) -> None:
    weights = extractor.network.state_dict()
    monkeypatch.setattr(peer_module, "load_state_dict_from_url", lambda url, progress: weights)
    peer = peer_module.InceptionV3().eval()
    x = images(height, width)
    expected = peer(x / 255)[0].squeeze(3).squeeze(2)
    assert relative_error(extractor(x).features, expected) < 1e-5


def test_both_paths_agree_where_nothing_is_resized(extractor: InceptionExtractor) -> None:
    x = images(299, 299)
    torch.testing.assert_close(resize_for_fid(x), x / 127.5 - 1)
    recorded = load_file(RECORDED)["features.299x299"]
    # x / 127.5 - 1 against (x - 128) / 128: the two published ranges differ by half a grey level.
    assert 0 < relative_error(extractor(x).features, recorded) < 0.02


def test_features_follow_the_rule_and_logits_do_not(extractor: InceptionExtractor) -> None:
    x = images(64, 48)
    half_pixel, tensorflow = (extractor(x, with_logits=True, resize=rule) for rule in ("half_pixel", "tensorflow"))
    assert torch.equal(half_pixel.logits, tensorflow.logits)
    assert torch.equal(tensorflow.features, extractor.network(resize_for_inception_score(x)))
    assert torch.equal(half_pixel.features, extractor(x).features)
    assert not torch.equal(half_pixel.features, tensorflow.features)


def test_weights_carry_their_hash_and_never_leave_evaluation(extractor: InceptionExtractor, weights_file: Path) -> None:
    assert extractor.sha256 == sha256_of_file(weights_file)
    assert not extractor.network.train().training


def test_wrong_weights_and_images_get_one_line(
    extractor: InceptionExtractor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = random_inception_state()
    bad = tmp_path / "bad.safetensors"
    save_file({**state, "fc.weight": torch.zeros(1000, 2048)}, bad)
    with pytest.raises(CheckpointError, match=r"1 names or shapes differ, first fc\.weight"):
        load_inception(bad)
    state["fc.bias"][3] = torch.nan
    save_file(state, bad)
    with pytest.raises(CheckpointError, match="not finite"):
        load_inception(bad)
    bad.write_bytes(bad.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cannot be read as weights"):
        load_inception(bad)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(DownloadError, match=r"pt_inception-2015-12-05-6726825d\.pth is not in the cache"):
        load_inception()
    with pytest.raises(DataError, match="expected uint8 images"):
        extractor(torch.zeros(1, 3, 8, 8))


def test_spatial_features_are_seven_channels_of_the_sixth_block(extractor) -> None:
    """By hand: what goes into torchvision's Mixed_6d, through its 1x1 convolution, norm and ReLU; NHWC, as in ADM."""
    x = resize_for_fid(images(40, 30))
    network, seen = extractor.network, []
    hook = network.Mixed_6d.branch1x1.register_forward_hook(lambda module, inputs, output: seen.append(output))
    features, spatial = network.forward_with_spatial(x)
    hook.remove()
    assert spatial.shape == (len(x), NUM_SPATIAL_FEATURES)
    by_position = spatial.reshape(len(x), 17, 17, 7)
    torch.testing.assert_close(by_position[:, 3, 11, 5], seen[0][:, 5, 3, 11])
    assert torch.equal(seen[0], seen[1])  # asked for beside the block's own pass
    assert torch.equal(features, network(x))
