"""What came of one picture through one autoencoder."""

from dataclasses import dataclass
from math import isfinite
from typing import Any


@dataclass(frozen=True)
class PictureResult:
    """One picture through one autoencoder.

    Attributes:
        picture: the input.
        model: the autoencoder's label.
        width: in pixels.
        height: in pixels.
        latent_shape: (C, h, w).
        psnr: in dB; infinite for an equal picture.
        ssim: None for a picture with a side shorter than 6 pixels.
        milliseconds: for encoding and decoding, without files and metrics.
        tile: side of the tiles; None for whole.
        files: what was written: "reconstruction", "comparison", "latent".
    """

    picture: str
    model: str
    width: int
    height: int
    latent_shape: tuple[int, ...]
    psnr: float
    ssim: float | None
    milliseconds: float
    tile: int | None
    files: dict[str, str]

    @property
    def compression(self) -> float:
        """How many times fewer values the latent has than the picture."""
        channels, height, width = self.latent_shape
        return 3 * self.width * self.height / (channels * height * width)

    def as_json(self) -> dict[str, Any]:
        """As plain values; an infinite PSNR is None, as JSON has no infinity."""
        return {
            "picture": self.picture,
            "model": self.model,
            "width": self.width,
            "height": self.height,
            "latent": list(self.latent_shape),
            "compression": self.compression,
            "psnr": self.psnr if isfinite(self.psnr) else None,
            "ssim": self.ssim,
            "milliseconds": self.milliseconds,
            "tile": self.tile,
            "files": self.files,
        }

    def caption(self) -> tuple[str, ...]:
        """What a comparison says under it."""
        latent = " x ".join(map(str, self.latent_shape))
        quality = f"PSNR {self.psnr:.2f} dB"
        if self.ssim is not None:
            quality += f", SSIM {self.ssim:.3f}"
        return (self.model, f"latent {latent}, {self.compression:.0f} times fewer values", quality)
