"""The page of `dcae reconstruct --report`: each image under a slider, input and reconstruction on its sides."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from dcae_core.data.images import open_image
from dcae_core.data.raster import Raster
from dcae_core.data.sources import ImageReference
from dcae_core.errors import DataError
from dcae_core.files import write_text
from dcae_core.pipelines.comparison import panel
from dcae_core.pipelines.image_files import ImageResult, RunSettings, mean_results, read_input
from dcae_core.pipelines.pages import data_url, render

PAGE_NAME = "report.html"
MAX_SHOWN = 48


def write_image_page(
    references: Mapping[str, ImageReference], results: Sequence[ImageResult], settings: RunSettings, crop: str
) -> Path:
    """Write `report.html` into the output directory, with the first 48 images in it and the figures of all.

    Reads those images and their reconstructions once more. About 1 MB for each image and model at 1024 pixels; larger
    ones than 1536 pixels are shown shrunk to that.

    Args:
        references: the inputs by name.
        results: of `reconstruct_file`, those of one image after another.
        settings: of the run.
        crop: what was done to the images' size, in words.

    Raises:
        ResourceError: the page cannot be written.
    """
    by_image = [(name, list(group)) for name, group in groupby(results, key=lambda result: result.image)]
    shown = [card for name, group in by_image[:MAX_SHOWN] if (card := _card(references[name], group, settings))]
    path = settings.output / PAGE_NAME
    page = render(
        "reconstructions.html",
        title="Reconstructions",
        num_images=len(by_image),
        num_shown=len(shown),
        crop=crop,
        means=mean_results(results),
        cards=shown,
    )
    write_text(path, page)
    return path


def _card(reference: ImageReference, results: Sequence[ImageResult], settings: RunSettings) -> dict[str, Any] | None:
    """None for an image that is gone by now."""
    try:
        original, _ = read_input(reference, settings)
        views = [
            {"model": result.model, "caption": result.caption()[1:], "url": _reconstruction_url(result, settings)}
            for result in results
        ]
    except DataError:
        return None
    return {
        "name": reference.name,
        "width": original.width,
        "height": original.height,
        "url": data_url(panel(original)),
        "views": views,
    }


def _reconstruction_url(result: ImageResult, settings: RunSettings) -> str:
    image = open_image(result.files["reconstruction"], max_pixels=settings.max_pixels)
    return data_url(panel(Raster.of_image(image, settings.output)))
