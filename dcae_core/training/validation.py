"""Held-out pictures: how well they come back, in figures and to the eye."""

from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from dcae_core.data.pictures import center_crop_adm, picture_to_tensor, tensor_to_uint8, uint8_to_picture
from dcae_core.data.sources import PictureList, PictureReference
from dcae_core.distributed import all_reduce_sum, is_main, rank, world_size
from dcae_core.errors import DataError
from dcae_core.files import make_directory, replace_file
from dcae_core.metrics.reconstruction import psnr, ssim
from dcae_core.models.autoencoder import Autoencoder
from dcae_core.recipes.train_ae import ValidationSettings


class ReconstructionValidation:
    """Reconstructs held-out pictures (ADM centre crop) and measures PSNR and SSIM per picture, averaged.

    Pictures are decoded anew each time; processes share them.

    Args:
        pictures: at least one.
        settings: how many, how large, how many at a time.
        samples: where grids go, as `step_N.png`.
    """

    def __init__(self, pictures: PictureList, settings: ValidationSettings, samples: Path) -> None:
        self._pictures = pictures[: settings.num_pictures]
        self._settings, self._samples = settings, samples

    @torch.no_grad()
    def measure(self, network: Autoencoder, step: int, stop: Callable[[], bool]) -> dict[str, float] | None:
        """Mean figures over all pictures, or None where `stop` turned true on the way; draws the grid.

        Raises:
            DataError: not one of the pictures can be decoded.
        """
        device = next(network.parameters()).device
        sums = torch.zeros(3, dtype=torch.float64)
        drawn: list[tuple[Tensor, Tensor]] = []
        mine = self._pictures[rank() :: world_size()]
        for start in range(0, len(mine), self._settings.batch_size):
            if stop():
                break
            crops = [
                crop for picture in mine[start : start + self._settings.batch_size] if (crop := self._crop(picture))
            ]
            if not crops:
                continue
            x = torch.stack([picture_to_tensor(crop) for crop in crops]).to(device)
            before, after = tensor_to_uint8(x), tensor_to_uint8(network(x))
            sums += torch.stack(
                [psnr(before, after).double().sum(), ssim(before, after).double().sum(), torch.tensor(len(crops))]
            ).cpu()
            drawn += zip(before.cpu(), after.cpu(), strict=True)
        if bool(all_reduce_sum(torch.tensor([float(stop())])).item()):
            return None
        total = all_reduce_sum(sums)
        if not total[2]:
            raise DataError("not one of the validation pictures can be decoded")
        if is_main() and self._settings.num_grid_pictures:
            self._draw(drawn[: self._settings.num_grid_pictures], step)
        return {"psnr": float(total[0] / total[2]), "ssim": float(total[1] / total[2])}

    def _crop(self, picture: PictureReference) -> Image.Image | None:
        try:
            return center_crop_adm(picture.open(), self._settings.resolution)
        except DataError:
            return None

    def _draw(self, pairs: list[tuple[Tensor, Tensor]], step: int) -> None:
        """Inputs above reconstructions."""
        rows = [torch.cat([pair[row] for pair in pairs], dim=2) for row in (0, 1)]
        path = make_directory(self._samples) / f"step_{step}.png"
        with replace_file(path) as file:
            uint8_to_picture(torch.cat(rows, dim=1)).save(file, "PNG")
