"""LPIPS against torchmetrics with the same random backbone and the published heads."""

from email.message import Message
from pathlib import Path
from urllib.error import HTTPError, URLError

import pytest
import torch
import torchmetrics.functional.image.lpips as peer
from torch import nn

from dcae_core import weights
from dcae_core.errors import CheckpointError, DownloadError, UsageError
from dcae_core.metrics.lpips import LPIPS, load_lpips

PUBLISHED_HEADS = Path(peer.__file__).parent / "lpips_models"


def torchvision_state(module: LPIPS) -> dict[str, torch.Tensor]:
    return {f"features.{name}": weight for name, weight in module.features.state_dict().items()}


def random_lpips(backbone: str, tmp_path: Path) -> LPIPS:
    """Random backbone weights in a file as torchvision's, the published heads: both go through the loader."""
    torch.manual_seed(0)
    template = LPIPS(backbone)
    for layer in template.features:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
    path = tmp_path / f"{backbone}.pth"
    torch.save({**torchvision_state(template), "classifier.6.bias": torch.zeros(1000)}, path)
    return load_lpips(backbone, backbone_weights=path, head_weights=PUBLISHED_HEADS / f"{backbone}.pth")


def peer_lpips(ours: LPIPS, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    monkeypatch.setattr(peer, "_get_tv_model_features", lambda net, pretrained=False: ours.features)
    return peer._LPIPS(pretrained=True, net=ours.backbone, pnet_rand=True)


def images(seed: int, size: int = 64) -> torch.Tensor:
    return torch.rand(2, 3, size, size + 7, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("backbone", ["alex", "vgg"])
def test_agrees_with_torchmetrics_in_value_and_gradient(
    backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = random_lpips(backbone, tmp_path)
    theirs = peer_lpips(ours, monkeypatch)
    target = images(0)
    gradients = []
    values = []
    for module in (ours, theirs):
        x = (0.8 * target + 0.2 * images(1)).requires_grad_()
        value = module(x, target).flatten()
        value.sum().backward()
        values.append(value.detach())
        gradients.append(x.grad)
    torch.testing.assert_close(values[0], values[1], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-8)
    assert values[0].min() > 0


def test_equal_images_have_distance_zero_and_training_mode_is_refused(tmp_path: Path) -> None:
    module = random_lpips("alex", tmp_path)
    assert module(images(0), images(0)).abs().max() == 0
    assert not module.train().training
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_offline_says_where_to_get_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(DownloadError, match=r"alexnet-owt-7be5be79\.pth is not in the cache"):
        load_lpips("alex")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (URLError("no route to host"), "the network cannot be reached"),
        (URLError(OSError(-2, "Name or service not known")), r"\(DNS\)"),
        (HTTPError("url", 403, "Forbidden", Message(), None), r"the server refuses access \(403\)"),
    ],
)
def test_a_failed_download_says_why_and_what_to_do(
    error: URLError, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(DownloadError, match=rf"{reason}.*on a machine with a network and put it at"):
        weights.fetch_published_weights(weights.VGG16)


def test_a_cached_file_with_other_bytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    path = weights.published_weights_path(weights.ALEXNET)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half a download")
    with pytest.raises(CheckpointError, match="SHA-256 differs"):
        weights.fetch_published_weights(weights.ALEXNET)


def test_the_published_heads_have_the_pinned_hashes() -> None:
    for name, published in (("alex", weights.LPIPS_ALEXNET_HEADS), ("vgg", weights.LPIPS_VGG16_HEADS)):
        assert weights.sha256_of_file(PUBLISHED_HEADS / f"{name}.pth") == published.sha256


def test_wrong_files_get_one_line(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes(b"\x80\x02not a checkpoint")
    with pytest.raises(CheckpointError, match="cannot be read as weights"):
        load_lpips("alex", backbone_weights=damaged, head_weights=damaged)
    with pytest.raises(CheckpointError, match=r"alex\.pth does not fit the network: tensors"):
        load_lpips("vgg", backbone_weights=PUBLISHED_HEADS / "alex.pth", head_weights=damaged)
    with pytest.raises(CheckpointError, match="no such file"):
        load_lpips("alex", backbone_weights=tmp_path / "none.pth", head_weights=damaged)
    with pytest.raises(UsageError, match="unknown LPIPS backbone"):
        LPIPS("resnet")
