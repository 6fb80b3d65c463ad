"""Stands in for Inception where its features do not matter."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from dcae_core.metrics.inception import InceptionOutput


class CheapExtractor:
    """A random projection of the image, which each rule shrinks in its own way."""

    sha256 = "c" * 64

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self._features = torch.randn(192, 2048, generator=generator) / 8
        self._spatial = torch.randn(192, 2023, generator=torch.Generator().manual_seed(1))
        self._logits = torch.randn(192, 1008, generator=generator)

    def __call__(
        self, images: torch.Tensor, *, with_logits: bool = False, resize: str = "half_pixel"
    ) -> InceptionOutput:
        images = images if resize == "half_pixel" else images[..., :-1, :-1]
        small = torch.nn.functional.adaptive_avg_pool2d(images.float() / 255, 8).flatten(1)
        logits = small @ self._logits if with_logits else None
        return InceptionOutput((small @ self._features).relu(), logits, (small @ self._spatial).relu())


@contextmanager
def in_place_of_inception() -> Iterator[None]:
    """Evaluations and references take the stand-in, in this process and in what is forked from it."""
    extractor = CheapExtractor()
    with pytest.MonkeyPatch.context() as patch:
        for user in ("evaluate", "fid_reference"):
            patch.setattr(f"dcae_core.pipelines.evaluation.{user}.load_inception", lambda *_, **__: extractor)
        yield
