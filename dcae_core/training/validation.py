"""Held-out pictures: how well they come back, in figures and to the eye."""

from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from dcae_core.data.pictures import center_crop_adm, picture_to_tensor, tensor_to_uint8, uint8_to_picture
from dcae_core.data.sources import PictureList, PictureReference
from dcae_core.distributed import all_reduce_sum, any_process, gather_objects, is_main, rank, world_size
from dcae_core.errors import DataError
from dcae_core.files import make_directory, replace_file
from dcae_core.metrics.frechet import Gaussian, GaussianStatistics, frechet_distance
from dcae_core.metrics.inception_features import InceptionExtractor, load_inception
from dcae_core.metrics.lpips import LPIPS, load_lpips
from dcae_core.metrics.reconstruction import psnr, ssim
from dcae_core.models.autoencoder import Autoencoder
from dcae_core.recipes.train_ae import ValidationSettings

_NUM_FEATURES = 2048


class ReconstructionValidation:
    """Reconstructs held-out pictures (ADM centre crop) and measures them; every figure on 8-bit pixels.

    PSNR, SSIM and LPIPS are per picture, then averaged; rFID is between all pictures and all reconstructions.
    Pictures are decoded anew each time; processes share them.

    Args:
        pictures: at least one.
        settings: how many, how large, which figures.
        samples: where grids go, as `step_N.png`.
        device: where the networks that judge pictures go.

    Raises:
        DownloadError: weights that a figure needs are neither cached nor to be had.
    """

    def __init__(
        self, pictures: PictureList, settings: ValidationSettings, samples: Path, device: torch.device
    ) -> None:
        self._pictures = pictures[: settings.num_pictures]
        self._settings, self._samples, self._device = settings, samples, device
        self._lpips: LPIPS | None = load_lpips("alex", device=device) if settings.lpips else None
        self._inception: InceptionExtractor | None = None
        if settings.fid:
            weights = Path(settings.inception_weights) if settings.inception_weights is not None else None
            self._inception = load_inception(weights, device=device)

    @torch.no_grad()
    def measure(self, network: Autoencoder, step: int, stop: Callable[[], bool]) -> dict[str, float] | None:
        """The figures, or None where `stop` turned true on the way; draws the grid.

        Raises:
            DataError: not one of the pictures can be decoded.
        """
        sums: dict[str, Tensor] = {}
        features = [GaussianStatistics(_NUM_FEATURES), GaussianStatistics(_NUM_FEATURES)]
        drawn: list[tuple[Tensor, Tensor]] = []
        mine = self._pictures[rank() :: world_size()]
        for start in range(0, len(mine), self._settings.batch_size):
            if stop():
                break
            x = self._decode(mine[start : start + self._settings.batch_size])
            if x is None:
                continue
            before, after = tensor_to_uint8(x), tensor_to_uint8(network(x))
            for name, value in self._judge(before, after).items():
                sums[name] = sums.get(name, torch.zeros((), dtype=torch.float64)) + value.double().sum().cpu()
            if self._inception is not None:
                for statistics, pixels in zip(features, (before, after), strict=True):
                    statistics.update(self._inception(pixels).features)
            drawn += zip(before.cpu(), after.cpu(), strict=True)
            drawn = drawn[: self._settings.num_grid_pictures]
        if any_process(stop()):
            return None
        figures = self._average(sums)
        if self._inception is not None:
            figures["rfid"] = _distance(*features)
        if is_main() and drawn:
            self._draw(drawn, step)
        return figures

    def _decode(self, pictures: list[PictureReference]) -> Tensor | None:
        """(B, 3, R, R) in [-1, 1] of those that can be decoded."""
        crops = [crop for picture in pictures if (crop := self._crop(picture)) is not None]
        return torch.stack([picture_to_tensor(crop) for crop in crops]).to(self._device) if crops else None

    def _crop(self, picture: PictureReference) -> Image.Image | None:
        try:
            return center_crop_adm(picture.open(), self._settings.resolution)
        except DataError:
            return None

    def _judge(self, before: Tensor, after: Tensor) -> dict[str, Tensor]:
        """One value per picture and figure."""
        figures = {
            "count": torch.ones(len(before)),
            # Equal pictures have an infinite PSNR, which would hide all others in the mean.
            "psnr": psnr(before, after).clamp(max=100.0),
            "ssim": ssim(before, after),
        }
        if self._lpips is not None:
            figures["lpips"] = self._lpips(before.float() / 127.5 - 1, after.float() / 127.5 - 1)
        return figures

    def _average(self, sums: dict[str, Tensor]) -> dict[str, float]:
        names = ["count", "psnr", "ssim", *(["lpips"] if self._lpips is not None else [])]
        totals = all_reduce_sum(torch.stack([sums.get(name, torch.zeros((), dtype=torch.float64)) for name in names]))
        if not totals[0]:
            raise DataError("not one of the validation pictures can be decoded")
        return dict(zip(names[1:], (totals[1:] / totals[0]).tolist(), strict=True))

    def _draw(self, pairs: list[tuple[Tensor, Tensor]], step: int) -> None:
        """Inputs above reconstructions."""
        rows = [torch.cat([pair[row] for pair in pairs], dim=2) for row in (0, 1)]
        path = make_directory(self._samples) / f"step_{step}.png"
        with replace_file(path) as file:
            uint8_to_picture(torch.cat(rows, dim=1)).save(file, "PNG")


def _distance(pictures: GaussianStatistics, reconstructions: GaussianStatistics) -> float:
    """Fréchet distance between what all processes saw."""
    gaussians = []
    for mine in (pictures, reconstructions):
        first, *others = gather_objects(mine)
        for other in others:
            first.merge(other)
        gaussians.append(Gaussian(first.mean, first.covariance))
    return frechet_distance(*gaussians)
