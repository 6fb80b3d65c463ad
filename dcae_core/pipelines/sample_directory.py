"""The output of a sampling run: images, latents and a grid, each whole or absent, and what is still to do."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file, save

from dcae_core.data.images import uint8_to_image
from dcae_core.errors import UsageError
from dcae_core.files import make_directory, remove_leftovers, replace_file, write_bytes, write_text
from dcae_core.pipelines.generate import Batch

RUN_NAME, GRID_NAME, LATENTS_NAME = "sample.json", "grid.png", "latents.safetensors"
MAX_GRID_IMAGES = 100
_PARTS_NAME = ".latents"


class SampleDirectory:
    """Where a run leaves its samples, and finds those of an earlier, stopped one.

    `sample.json` says what the run is. The same run goes on where it stopped, also with more samples; another one is
    refused. A batch counts as done once all its images (and, asked for, its latents) lie there.
    """

    def __init__(
        self, path: Path, classes: Sequence[int], run: dict[str, Any], *, save_latents: bool, class_in_name: bool = True
    ) -> None:
        """Describe a run.

        Args:
            path: the directory.
            classes: of all samples.
            run: everything else that the samples' bytes depend on, as JSON values.
            save_latents: also keep the latents.
            class_in_name: name images by their class as well.
        """
        self.path = path
        self.classes = list(classes)
        self.run = run
        self.save_latents = save_latents
        self.class_in_name = class_in_name

    def recorded_batch_size(self) -> int | None:
        """The batch size of the run that lies here, which its continuation must keep; None where there is none.

        Raises:
            UsageError: another run lies here, or the directory cannot tell which.
        """
        file = self.path / RUN_NAME
        if not file.exists():
            return None
        try:
            recorded = json.loads(file.read_text(encoding="utf-8"))
            batch_size, classes = int(recorded.pop("batch_size")), list(recorded.pop("classes"))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"{file} is not a record of a sampling run; choose another -o") from error
        different = [name for name in {**recorded, **self.run} if recorded.get(name) != self.run.get(name)]
        if self.classes[: len(classes)] != classes:
            different.append("classes")
        if different:
            raise UsageError(f"{self.path} holds a run with another {', '.join(different)}; choose another -o")
        return batch_size

    def begin(self, batch_size: int) -> None:
        """Record the run, and clear what a killed one left half written.

        Raises:
            ResourceError: the directory cannot be written.
        """
        make_directory(self.path)
        remove_leftovers(self.path)
        remove_leftovers(self.path / _PARTS_NAME)
        record = self.run | {"batch_size": batch_size, "classes": self.classes}
        write_text(self.path / RUN_NAME, json.dumps(record, indent=1) + "\n")

    def image(self, index: int) -> Path:
        """Where sample `index` goes."""
        suffix = f"_c{self.classes[index]}" if self.class_in_name else ""
        return self.path / f"{index:04d}{suffix}.png"

    def is_done(self, number: int, batch_size: int) -> bool:
        """Whether all of batch `number` lies here."""
        indices = range(number * batch_size, min((number + 1) * batch_size, len(self.classes)))
        if not all(self.image(index).exists() for index in indices):
            return False
        return not self.save_latents or self._part(number).exists() or self._has_all_latents()

    def write(self, batch: Batch) -> None:
        """Keep a finished batch, its latents first.

        Raises:
            ResourceError: the disk is full, or the place cannot be written to.
        """
        if self.save_latents:
            make_directory(self.path / _PARTS_NAME)
            write_bytes(self._part(batch.number), save({"latents": batch.latents.contiguous()}))
        for index, pixels in zip(batch.indices, batch.pixels, strict=True):
            _write_png(self.image(index), uint8_to_image(pixels))

    def finish(self, batch_size: int) -> None:
        """Write the grid of the first images, and all latents in one file, from what lies here.

        Raises:
            ResourceError: the disk is full, or the place cannot be written to.
        """
        shown = min(len(self.classes), MAX_GRID_IMAGES)
        _write_png(self.path / GRID_NAME, _grid([self.image(index) for index in range(shown)]))
        if self.save_latents and not self._has_all_latents():
            numbers = range(-(-len(self.classes) // batch_size))
            latents = torch.cat([load_file(self._part(number))["latents"] for number in numbers])
            tensors = {"latents": latents, "classes": torch.tensor(self.classes)}
            write_bytes(self.path / LATENTS_NAME, save(tensors))
        for part in (self.path / _PARTS_NAME).glob("*.safetensors"):
            part.unlink()
        if (self.path / _PARTS_NAME).is_dir():
            (self.path / _PARTS_NAME).rmdir()

    def _part(self, number: int) -> Path:
        return self.path / _PARTS_NAME / f"{number:06d}.safetensors"

    def _has_all_latents(self) -> bool:
        file = self.path / LATENTS_NAME
        return file.exists() and load_file(file)["classes"].tolist() == self.classes


def _write_png(path: Path, image: Image.Image) -> None:
    with replace_file(path) as file:
        image.save(file, "PNG")


def _grid(files: list[Path]) -> Image.Image:
    """Images of one size, row by row, as nearly square as they go."""
    columns = next(n for n in range(1, len(files) + 1) if n * n >= len(files))
    with Image.open(files[0]) as first:
        width, height = first.size
    grid = Image.new("RGB", (columns * width, -(-len(files) // columns) * height), "white")
    for position, file in enumerate(files):
        with Image.open(file) as image:
            grid.paste(image, (position % columns * width, position // columns * height))
    return grid
