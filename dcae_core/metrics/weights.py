"""The few published weights that metrics are defined by: where each comes from, and the bytes it must have.

Files lie where PyTorch and other metric packages keep them, so one that is already there is not fetched again.
"""

import logging
import os
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from huggingface_hub.utils import WeakFileLock
from safetensors.torch import load_file
from torch import Tensor

from dcae_core.errors import CheckpointError, DownloadError
from dcae_core.files import explain_write_errors, make_directory, sha256_of_file

_log = logging.getLogger(__name__)

_LPIPS_HEADS = "https://github.com/richzhang/PerceptualSimilarity/raw/082bb24f84c091ea94de2867d34c4544f68e0963"


@dataclass(frozen=True)
class PublishedWeights:
    """One file of weights: its name in the cache, its source, and the SHA-256 of its bytes."""

    file_name: str
    url: str
    sha256: str
    size: str


INCEPTION_2015_12_05 = PublishedWeights(
    "pt_inception-2015-12-05-6726825d.pth",
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    "96 MB",
)
ALEXNET = PublishedWeights(
    "alexnet-owt-7be5be79.pth",
    "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
    "244 MB",
)
VGG16 = PublishedWeights(
    "vgg16-397923af.pth",
    "https://download.pytorch.org/models/vgg16-397923af.pth",
    "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
    "553 MB",
)
LPIPS_ALEXNET_HEADS = PublishedWeights(
    "lpips-v0.1-alex-df73285e.pth",
    f"{_LPIPS_HEADS}/lpips/weights/v0.1/alex.pth",
    "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
    "6 kB",
)
LPIPS_VGG16_HEADS = PublishedWeights(
    "lpips-v0.1-vgg-a78928a0.pth",
    f"{_LPIPS_HEADS}/lpips/weights/v0.1/vgg.pth",
    "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
    "7 kB",
)


def cached_file(published: PublishedWeights) -> Path:
    """Where the file of these weights lies, or would lie, on this machine."""
    return Path(torch.hub.get_dir()) / "checkpoints" / published.file_name


def fetch(published: PublishedWeights) -> Path:
    """The local file of these weights, downloaded on first use and checked against its SHA-256 every time.

    Hashing costs about a second per 500 MB.

    Raises:
        DownloadError: the file is not there and cannot be downloaded.
        CheckpointError: the file that is there has other bytes.
        ResourceError: the cache cannot be written to.
    """
    path = cached_file(published)
    if not path.exists():
        make_directory(path.parent)
        # One process of several downloads, the others find the file.
        with explain_write_errors(path), WeakFileLock(path.with_suffix(".lock")):
            if not path.exists():
                _download(published, path)
    if sha256_of_file(path) != published.sha256:
        raise CheckpointError(f"{path} is not the published file (its SHA-256 differs): delete it and try again")
    return path


def _download(published: PublishedWeights, path: Path) -> None:
    advice = f"fetch {published.url} on a machine with a network and put it at {path}"
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise DownloadError(f"{published.file_name} is not in the cache and HF_HUB_OFFLINE is set: {advice}")
    _log.warning("downloading %s (%s) from %s", published.file_name, published.size, published.url)
    try:
        torch.hub.download_url_to_file(published.url, str(path), hash_prefix=published.sha256, progress=False)
    except (URLError, HTTPException, ConnectionError, TimeoutError) as error:
        raise DownloadError(f"could not download {published.file_name} ({error}): {advice}") from error
    except RuntimeError as error:
        raise DownloadError(f"{published.url} gave other bytes than expected, none kept: {advice}") from error


def read_weights_file(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a safetensors file, or from a PyTorch file without executing anything in it.

    Raises:
        CheckpointError: the file is missing, damaged, or holds something else than named tensors.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file; give the path of a file of weights")
    try:
        weights: Any
        if path.suffix == ".safetensors":
            weights = load_file(path)
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # every reader has its own kinds of failure; the user has one file to look at
        raise CheckpointError(f"{path} cannot be read as weights: damaged, or not a file of tensors") from error
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise CheckpointError(f"{path} holds no plain dictionary of named tensors")
    return weights
