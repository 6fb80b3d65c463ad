"""The output of a sampling run: images, latents and a grid, each whole or absent, and what is still to do."""

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from dcae_core.data.images import uint8_to_image
from dcae_core.distributed import barrier, gather_objects, is_main, on_main, rank, world_size
from dcae_core.errors import DataError, UsageError
from dcae_core.files import lock_directory, make_directory, remove_leftovers, replace_file, write_bytes, write_text
from dcae_core.pipelines.comparison import image_grid
from dcae_core.pipelines.generate import DiffusionPipeline, SampleBatch, SampleSettings
from dcae_core.progress import OpenProgress, no_progress

RUN_NAME, GRID_NAME, LATENTS_NAME = "sample.json", "grid.png", "latents.safetensors"
MODEL_FINGERPRINT, AUTOENCODER_FINGERPRINT = "model_fingerprint", "autoencoder_fingerprint"
AUTOGUIDANCE_FINGERPRINT = "autoguidance_fingerprint"
MAX_GRID_IMAGES = 100
_PARTS_NAME = ".latents"
_PNG_HEAD, _PNG_TAIL = b"\x89PNG\r\n\x1a\n", b"\0\0\0\0IEND\xaeB`\x82"
# Names are for people where a fingerprint says the same more surely, and what a mismatch of fingerprints is called.
_FINGERPRINT_OF = {
    "model": MODEL_FINGERPRINT,
    "autoencoder": AUTOENCODER_FINGERPRINT,
    "autoguidance": AUTOGUIDANCE_FINGERPRINT,
}
_WORDS = {
    MODEL_FINGERPRINT: "set of model weights",
    AUTOENCODER_FINGERPRINT: "autoencoder",
    AUTOGUIDANCE_FINGERPRINT: "autoguidance",
}
# What runs could not have when records did not name it.
_WITHOUT = {"guidance_interval": None, "autoguidance": None, AUTOGUIDANCE_FINGERPRINT: None}


class SampleDirectory:
    """Where a run leaves its samples, and finds those of an earlier, stopped one.

    `sample.json` says what the run is. The same run goes on where it stopped, also with more samples; another one is
    refused. A batch counts as done once all its images (and, asked for, its latents) lie there.

    `run` is everything besides the classes that the samples' bytes depend on, as JSON values; `defaults` is what a null
    stands for in a record that was written before all values were resolved. With `class_in_name`, images are named by
    their class as well; `class_names`, one for each class of the network, are recorded and stand on the grid.
    """

    def __init__(
        self,
        path: Path,
        classes: Sequence[int],
        run: dict[str, Any],
        *,
        save_latents: bool,
        class_in_name: bool = True,
        class_names: Sequence[str] | None = None,
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = path
        self.classes = list(classes)
        self.run = run
        self.save_latents = save_latents
        self.class_in_name = class_in_name
        self._class_names = class_names
        self._defaults = defaults or {}
        self._facts: dict[str, Any] = {}

    def recorded_batch_size(self) -> int | None:
        """The batch size of the run that lies here, which its continuation must keep; None where there is none.

        UsageError where another run lies here, or the directory cannot tell which.
        """
        file = self.path / RUN_NAME
        if not file.exists():
            self._require_free(range(len(self.classes)), [GRID_NAME, LATENTS_NAME])
            return None
        try:
            recorded = _read_record(file)
        except DataError as error:
            raise UsageError(f"{error}; choose another -o") from error
        different = [_WORDS.get(name, name) for name in self.run if self._differs(name, recorded)]
        if self.classes[: len(recorded["classes"])] != recorded["classes"]:
            different.append("classes")
        if different:
            raise UsageError(f"{self.path} holds a run with another {', '.join(different)}; choose another -o")
        self._require_free(range(len(recorded["classes"]), len(self.classes)), [])
        return recorded["batch_size"]

    def _differs(self, name: str, recorded: dict[str, Any]) -> bool:
        if name not in recorded or recorded.get(_FINGERPRINT_OF.get(name, "")):
            return False  # an earlier version did not record it, or the fingerprint decides
        there = recorded[name] if recorded[name] is not None else self._defaults.get(name)
        return there != self.run[name]

    def identify(self, facts: Mapping[str, Any], **fingerprints: str | None) -> None:
        """Add what is only known once the weights are read; `facts` are for people, and are not compared.

        Raises:
            UsageError: a run with other weights lies here.
        """
        self._facts |= facts
        self.run |= fingerprints
        self.recorded_batch_size()

    def _require_free(self, indices: Iterable[int], names: Iterable[str]) -> None:
        """Refuse to replace what no run recorded here has made, or to take it for a sample."""
        for file in (*(self.image(index) for index in indices), *(self.path / name for name in names)):
            if os.path.lexists(file):
                raise UsageError(f"{file} is there already and was not made by a run recorded there; choose another -o")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory against a second run (UsageError); the lock goes with the process, however that ends."""
        with lock_directory(self.path, "`dcae sample`; wait, or choose another -o"):
            yield

    def begin(self, batch_size: int) -> None:
        """Record the run, and clear what a killed one left half written."""
        make_directory(self.path)
        remove_leftovers(self.path)
        remove_leftovers(self.path / _PARTS_NAME)
        names = self._class_names or ()
        named = {"class_names": {str(number): names[number] for number in sorted(set(self.classes))}} if names else {}
        record = self.run | self._facts | named | {"batch_size": batch_size, "classes": self.classes}
        write_text(self.path / RUN_NAME, json.dumps(record, indent=1, ensure_ascii=False) + "\n")

    def image(self, index: int) -> Path:
        """Where sample `index` goes."""
        return self.path / _image_name(index, self.classes[index] if self.class_in_name else None)

    def is_done(self, number: int, batch_size: int) -> bool:
        """Whether all of batch `number` lies here."""
        indices = range(number * batch_size, min((number + 1) * batch_size, len(self.classes)))
        if not all(_is_whole_png(self.image(index)) for index in indices):
            return False
        return not self.save_latents or _reads(self._part(number)) or self._has_all_latents()

    def write(self, batch: SampleBatch) -> None:
        """Keep a finished batch, its latents first."""
        if self.save_latents:
            make_directory(self.path / _PARTS_NAME)
            write_bytes(self._part(batch.number), save({"latents": batch.latents.contiguous()}))
        for index, pixels in zip(batch.indices, batch.pixels, strict=True):
            _write_png(self.image(index), uint8_to_image(pixels))

    def finish(self, batch_size: int) -> None:
        """Write the grid of the first images, and all latents in one file, from what lies here."""
        shown = range(min(len(self.classes), MAX_GRID_IMAGES))
        images = _open_images([self.image(index) for index in shown])
        captions = [self._class_names[self.classes[index]] for index in shown] if self._class_names else None
        _write_png(self.path / GRID_NAME, image_grid(images, len(shown), captions))
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
        try:
            return bool(load_file(self.path / LATENTS_NAME)["classes"].tolist() == self.classes)
        except (OSError, SafetensorError, KeyError):
            return False


@dataclass(frozen=True)
class SampleReport:
    """What a call came to: images it `made`, over all processes, and the seconds that took."""

    batch_size: int
    made: int
    seconds: float


def sample_into(
    directory: SampleDirectory,
    pipeline: DiffusionPipeline,
    settings: SampleSettings,
    *,
    batch_size: int | None = None,
    open_progress: OpenProgress = no_progress,
) -> SampleReport:
    """Make what the directory lacks of its run. Processes of one group call this together and share the batches.

    `batch_size` is that of an earlier part of the run; None finds one that fits all processes. `open_progress` shows
    how many images this process has made.

    Raises:
        UsageError: another process is writing there.
        ResourceError: even one sample does not fit into memory, or the disk is full.
        CheckpointError: the samples are not finite.
    """
    num = len(directory.classes)
    size = min(num, batch_size or min(gather_objects(pipeline.find_batch_size(num, settings))))
    with ExitStack() as stack:
        on_main(lambda: stack.enter_context(directory.locked()))
        missing = [number for number in range(-(-num // size)) if not directory.is_done(number, size)]
        barrier()  # all have looked, before anything changes
        on_main(lambda: directory.begin(size))
        mine = set(missing[rank() :: world_size()])
        start, made = time.monotonic(), 0
        with open_progress("sample", sum(min(size, num - number * size) for number in mine)) as advance:
            batches = pipeline.generate_batches(
                directory.classes,
                settings,
                batch_size=size,
                skip=lambda number: number not in mine,
                progress=lambda step, total: advance(0, note=f"step {step}/{total}"),
            )
            for batch in batches:
                directory.write(batch)
                made += len(batch.indices)
                advance(len(batch.indices))
        report = SampleReport(size, sum(gather_objects(made)), time.monotonic() - start)
        if is_main():
            directory.finish(size)
    return report


def find_samples(directory: str | Path) -> list[Path] | None:
    """The images of the sampling run that lies in a directory, in their order; None where none does.

    Raises:
        DataError: the run is not finished, or its record cannot be read.
    """
    record = Path(directory) / RUN_NAME
    if not record.is_file():
        return None
    images = []
    for index, number in enumerate(_read_record(record)["classes"]):
        candidates = [record.with_name(_image_name(index, label)) for label in (number, None)]
        found = next((image for image in candidates if image.is_file()), None)
        if found is None:
            raise DataError(f"{directory}: sample {index} of its {RUN_NAME} is missing; run its `dcae sample` again")
        images.append(found)
    return images


def _read_record(file: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return (
            _WITHOUT
            | record
            | {
                "batch_size": int(record["batch_size"]),
                "classes": [int(number) for number in record["classes"]],
            }
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{file} is not a record of a sampling run") from error


def _image_name(index: int, label: int | None) -> str:
    return f"{index:04d}.png" if label is None else f"{index:04d}_c{label}.png"


def _write_png(path: Path, image: Image.Image) -> None:
    with replace_file(path) as file:
        image.save(file, "PNG")


def _is_whole_png(path: Path) -> bool:
    """Whether a file begins and ends as a PNG does: one that was cut short, or replaced, is made again."""
    try:
        with open(path, "rb") as file:
            head = file.read(len(_PNG_HEAD))
            file.seek(-len(_PNG_TAIL), os.SEEK_END)
            return head == _PNG_HEAD and file.read() == _PNG_TAIL
    except OSError:
        return False


def _reads(part: Path) -> bool:
    try:
        return "latents" in load_file(part)
    except (OSError, SafetensorError):
        return False


def _open_images(files: Sequence[Path]) -> Iterator[Image.Image]:
    for file in files:
        try:
            with Image.open(file) as image:
                image.load()
                yield image
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(f"{file} is damaged; remove it and give the same command again to make it anew") from error
