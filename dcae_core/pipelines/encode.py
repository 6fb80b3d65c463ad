"""Images to a latent dataset, by one process or many, with the same bytes.

The unit of work is a shard: shard k holds the latents of images k * shard_size ... of the sorted list, and is encoded
by process k mod W. Batches never cross shards, the last one of a shard is padded to the full shape, and each process
computes on a fixed number of threads; so the bytes depend neither on W nor on where a run was stopped.
"""

import hashlib
import math
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from dcae_core import distributed
from dcae_core.checkpoints import load_autoencoder
from dcae_core.checkpoints.kl_autoencoder import KLAutoencoder
from dcae_core.checkpoints.training_runs import model_name
from dcae_core.data.content import digest_of_images
from dcae_core.data.decoded_crops import DecodedCrop, decode_crops
from dcae_core.data.images import uint8_to_tensor
from dcae_core.data.latents import DatasetPlan, LatentDatasetWriter, Manifest
from dcae_core.data.latents.manifest import (
    ITEM_BYTES,
    DamagedRecord,
    EncoderRecord,
    TransformRecord,
    parse_manifest,
)
from dcae_core.data.latents.shard import TORCH_DTYPES
from dcae_core.data.latents.writer import IMAGES_KEY
from dcae_core.data.sources import ImageList, ImageReference
from dcae_core.devices import parse_dtype
from dcae_core.diffusion.guidance import sample_noise
from dcae_core.errors import DataError, ResourceError, UsageError, printable
from dcae_core.models.autoencoder import Autoencoder
from dcae_core.models.compilation import repays_compiling
from dcae_core.models.inference import for_run, prepare_for_inference
from dcae_core.progress import Advance
from dcae_core.recipes.encode_dataset import EncodeDatasetRecipe
from dcae_core.weights import encoder_fingerprint, fingerprint
from dcae_core.zoo import EMBEDDED_AUTOENCODER

SCALING_FACTOR_TOLERANCE = 0.05
ENOUGH_LATENTS = 100  # to judge a scaling factor by
NumberedCrop = tuple[int, DecodedCrop]
"""An image's place in the list, and what was decoded of it."""

_SHARD_OVERHEAD = 8192  # header and record of a shard, generously
_NAME_BYTES = 128
_SMALL_BATCH = 64  # up to this many images a batch may also be larger than the set: it is padded


@dataclass
class Timing:
    """Seconds that one process spent on its images.

    `decoding` adds up all decoding threads; `waiting` is the time that the network waited for images.
    """

    images: int = 0
    decoding: float = 0.0
    encoding: float = 0.0
    waiting: float = 0.0


@dataclass(frozen=True)
class EncodeReport:
    """What an encoding came to; the figures of speed are None if nothing was left to encode.

    Attributes:
        kept: items that an earlier, stopped run had finished.
        decoder_rate: images per second that all decoding threads together could deliver.
        encoder_rate: images per second that the networks could take.
        waited: share of its time that the network waited for images.
        warnings: lines for people.
    """

    manifest: Manifest
    kept: int
    decoder_rate: float | None
    encoder_rate: float | None
    waited: float | None
    warnings: list[str]


def encoder_name(model: str | None) -> str:
    """What people call the autoencoder that `load_autoencoder(model)` gives: the last part of its name, or its run."""
    if model is None:
        return EMBEDDED_AUTOENCODER
    return model_name(Path(model)) if Path(model).is_dir() else Path(model).name


def load_encoder(
    model: str | None,
    *,
    device: torch.device,
    dtype: torch.dtype,
    revision: str | None = None,
    prepare: bool = True,
) -> tuple[Autoencoder, EncoderRecord]:
    """Load an autoencoder for inference, and identify it.

    The identity is a fingerprint of its float32 weights, so it does not depend on `dtype`, layout or place; the name
    is for people. Costs one pass over the weights beyond loading them. Without `prepare` it stays the plain network.

    Raises:
        UsageError: nothing is called that.
        CheckpointError: the weights are damaged or do not fit.
        DownloadError: the files are not cached and cannot be downloaded.
    """
    network = load_autoencoder(model, prepare=False, revision=revision)
    record = EncoderRecord(
        name=encoder_name(model),
        fingerprint=fingerprint(network),
        encoder_fingerprint=encoder_fingerprint(network),
        scaling_factor=network.scaling_factor,
    )
    network = network.to(device, dtype)
    return prepare_for_inference(network) if prepare else network, record


def encode_dataset(
    images: ImageList,
    network: Autoencoder | KLAutoencoder,
    encoder: EncoderRecord,
    directory: Path,
    recipe: EncodeDatasetRecipe,
    *,
    device: torch.device,
    advance: Advance = lambda _: None,
) -> EncodeReport:
    """Encode `images` into a latent dataset in `directory`; continues what an earlier run left there.

    Holds one shard of latents and a few batches of images. All processes of a group call this together.

    Args:
        images: sorted, with or without classes.
        network: on `device`, in the recipe's number type; from here on compiled where that repays.
        encoder: what the manifest says about the network.
        directory: empty, new, or left by a run with the same recipe.
        recipe: how to encode; its `images`, `out` and `model` are given by the arguments above.
        device: where to compute.
        advance: called with a number of items as they are finished (by this process).

    Raises:
        UsageError: settings that do not fit, or a directory with other content.
        DataError: a damaged image where none is allowed, none that is good, or latents that are not finite.
        ResourceError: not enough room on the disk.
    """
    if recipe.batch_size > max(len(images), _SMALL_BATCH):
        raise UsageError(
            f"a batch size of {recipe.batch_size:,} is more than the {len(images):,} images; take that or less"
        )
    plan = plan_dataset(images, network, encoder, recipe, device)
    writer = LatentDatasetWriter(directory, plan)
    with ExitStack() as stack:
        distributed.on_main(lambda: stack.enter_context(writer.locked()))
        stack.enter_context(_computing_on(device, recipe.num_threads))
        distributed.on_main(lambda: _begin(writer, len(images)))
        was_complete = writer.is_complete()
        mine = range(distributed.rank(), plan.num_shards, distributed.world_size())
        finished = {} if was_complete else {number: writer.finished(number) for number in mine}
        kept = sum(record.shard.count for record in finished.values() if record)
        advance(kept)

        network = for_run(network, _num_calls(images, recipe), recipe.compile)
        work = _ShardEncoder(images, network, writer, recipe, device)
        work.encode_shards([number for number, record in finished.items() if record is None], advance)

        kept_everywhere = sum(distributed.gather_objects(kept))
        timings = [Timing(**seconds) for seconds in distributed.gather_objects(asdict(work.timing))]
        content = distributed.on_main(lambda: writer.finish().to_json())
    manifest = parse_manifest(content.encode(), str(directory))
    if manifest.count == 0:
        raise DataError(f"none of the {len(images)} images can be decoded; the first: {manifest.damaged[0].reason}")
    kept_everywhere = manifest.count if was_complete else kept_everywhere
    warnings = [*images.notes(), *check_scaling_factor(manifest)]
    return EncodeReport(manifest, kept_everywhere, *_rates(timings, recipe), warnings)


def plan_dataset(
    images: ImageList,
    network: Autoencoder | KLAutoencoder,
    encoder: EncoderRecord,
    recipe: EncodeDatasetRecipe,
    device: torch.device,
) -> DatasetPlan:
    """What the dataset will be, before any work.

    UsageError where the resolution does not fit the autoencoder, DataError where only some images have a class.
    """
    ratio = network.spatial_compression_ratio
    if recipe.resolution % ratio:
        near = max(1, round(recipe.resolution / ratio)) * ratio
        raise UsageError(
            f"resolution {recipe.resolution} is no multiple of {ratio}, the spatial compression of {encoder.name}; "
            f"take {near}"
        )
    if images.classes and (images.labels < 0).any():
        first = images[int((images.labels < 0).argmax())]
        raise DataError(f"{first.name} has no class while others have one; move it into a class folder or leave it out")
    side = recipe.resolution // ratio
    return DatasetPlan(
        encoder=encoder,
        transform=TransformRecord(
            resolution=recipe.resolution,
            apply_exif=recipe.apply_exif,
            flipped_copies=recipe.flipped_copies,
            alpha=recipe.alpha,
        ),
        encoding={
            "pictures": len(images),
            "pictures_sha256": _identity(images),
            IMAGES_KEY: distributed.broadcast_object(digest_of_images(images) if distributed.is_main() else None),
            "max_pixels": recipe.max_pixels,
            "batch_size": recipe.batch_size,
            "shard_size": recipe.shard_size,
            "compute_dtype": str(parse_dtype(recipe.dtype)).removeprefix("torch."),
            "device": device.type,
            "num_threads": recipe.num_threads if device.type == "cpu" else None,
            "posterior_seed": recipe.seed if isinstance(network, KLAutoencoder) else None,
            "torch": torch.__version__,
        }
        | ({"compiled": True} if repays_compiling(device, _num_calls(images, recipe), recipe.compile) else {}),
        dtype=recipe.latent_dtype,
        latent_shape=(network.latent_channels, side, side),
        classes=images.classes,
        num_shards=-(-len(images) // recipe.shard_size),
    )


def _num_calls(images: ImageList, recipe: EncodeDatasetRecipe) -> int:
    """Of the network for the whole dataset, however many processes share them."""
    return -(-len(images) // recipe.batch_size) * (2 if recipe.flipped_copies else 1)


def estimate_bytes(plan: DatasetPlan, num_images: int) -> int:
    """Disk that the finished dataset needs, at most."""
    copies = 2 if plan.transform.flipped_copies else 1
    item_bytes = math.prod(plan.latent_shape) * ITEM_BYTES[plan.dtype] + 8
    return num_images * (copies * item_bytes + _NAME_BYTES) + plan.num_shards * _SHARD_OVERHEAD


def check_scaling_factor(manifest: Manifest) -> list[str]:
    """One line of warning if 1 / rms of the latents is more than 5 % away from the encoder's scaling factor.

    None for a few latents, whose rms tells more about these images than about the crop or the model.
    """
    published, statistics = manifest.encoder.scaling_factor, manifest.statistics
    if published is None or statistics is None or statistics.rms == 0 or manifest.count < ENOUGH_LATENTS:
        return []
    measured = 1.0 / statistics.rms
    deviation = measured / published - 1.0
    if abs(deviation) <= SCALING_FACTOR_TOLERANCE:
        return []
    return [
        f"1/rms of these latents is {measured:.4g}, {deviation:+.0%} from {manifest.encoder.name}'s scaling factor "
        f"{published:.4g}: these images are unlike those it was measured on; check the model and the crop"
    ]


def _begin(writer: LatentDatasetWriter, num_images: int) -> None:
    writer.begin()
    there = sum(file.stat().st_size for file in writer.directory.glob("*.safetensors"))
    wanted = estimate_bytes(writer.plan, num_images) - there
    free = shutil.disk_usage(writer.directory).free
    if wanted > free and not writer.is_complete():
        raise ResourceError(
            f"{writer.directory} needs about {wanted / 1e9:.3g} GB more, its disk has {free / 1e9:.3g} GB free; "
            "free some room or choose another --out"
        )


@contextmanager
def _computing_on(device: torch.device, num_threads: int) -> Iterator[None]:
    """Within it, a CPU computes on a fixed number of threads: their number moves float32 results by 1e-6."""
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _identity(images: ImageList) -> str:
    """A checksum of the images' names and classes, so that a continued run is known to mean the same images."""
    digest = hashlib.sha256()
    for reference in images:
        digest.update(f"{reference.key}\0{reference.label}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


class _ShardEncoder:
    """Turns decoded images into finished shards, and keeps the time."""

    def __init__(
        self,
        images: ImageList,
        network: Autoencoder | KLAutoencoder,
        writer: LatentDatasetWriter,
        recipe: EncodeDatasetRecipe,
        device: torch.device,
    ) -> None:
        self.timing = Timing()
        self._images, self._network, self._writer, self._recipe = images, network, writer, recipe
        self._device, self._dtype = device, parse_dtype(recipe.dtype)

    def encode_shards(self, numbers: list[int], advance: Advance) -> None:
        """Encode these shards one after another, while threads decode images ahead, also across shards."""
        crops = decode_crops(
            (self._images[index] for number in numbers for index in self._range(number)),
            self._recipe.resolution,
            num_workers=self._recipe.num_workers,
            apply_exif=self._recipe.apply_exif,
            max_pixels=self._recipe.max_pixels,
            alpha=self._recipe.alpha,
        )
        for number in numbers:
            self._encode_shard(number, islice(crops, len(self._range(number))), advance)

    def _range(self, number: int) -> range:
        first = number * self._recipe.shard_size
        return range(first, min(first + self._recipe.shard_size, len(self._images)))

    def _encode_shard(self, number: int, crops: Iterator[DecodedCrop], advance: Advance) -> None:
        plan = self._writer.plan
        done: list[ImageReference] = []
        damaged = [_record(lost.key, lost.path, lost.error) for lost in self._images.left_out] if number == 0 else []
        parts = [torch.empty((0, *plan.latent_shape), dtype=TORCH_DTYPES[plan.dtype])]
        for batch in self._good_batches(zip(self._range(number), crops, strict=True), damaged):
            parts.append(self._encode_batch(batch))
            done += [crop.reference for _, crop in batch]
            advance(len(parts[-1]))
        copies = 2 if self._recipe.flipped_copies else 1
        labels = torch.tensor([reference.label or 0 for reference in done], dtype=torch.int64)
        names = [reference.key.replace("\n", " ") for reference in done]
        self._writer.write_shard(number, torch.cat(parts), labels.repeat_interleave(copies), names, damaged)

    def _good_batches(
        self, crops: Iterator[NumberedCrop], damaged: list[DamagedRecord]
    ) -> Iterator[list[NumberedCrop]]:
        batch: list[NumberedCrop] = []
        while True:
            start = time.perf_counter()
            numbered = next(crops, None)
            self.timing.waiting += time.perf_counter() - start
            if numbered is None:
                break
            crop = numbered[1]
            self.timing.decoding += crop.seconds
            if crop.error is None:
                batch.append(numbered)
            elif self._recipe.damaged == "fail":
                raise crop.error
            else:
                damaged.append(_record(crop.reference.key, crop.reference.name, crop.error))
            if len(batch) == self._recipe.batch_size:
                yield batch
                batch = []
        if batch:
            yield batch

    def _encode_batch(self, batch: list[NumberedCrop]) -> Tensor:
        """Latents (n * copies, C, h, w) as they are stored."""
        start = time.perf_counter()
        pixels = torch.stack([crop.pixels for _, crop in batch if crop.pixels is not None])
        missing = self._recipe.batch_size - len(batch)
        padded = torch.cat([pixels, pixels.new_zeros((missing, *pixels.shape[1:]))])
        x = uint8_to_tensor(padded.to(self._device)).to(self._dtype)
        views = [x, x.flip(-1)] if self._recipe.flipped_copies else [x]
        with torch.inference_mode():
            encoded = [self._encode(view, batch, copy)[: len(batch)] for copy, view in enumerate(views)]
        latents = torch.stack(encoded, dim=1).flatten(0, 1)
        stored = latents.to(TORCH_DTYPES[self._recipe.latent_dtype]).cpu()
        if not torch.isfinite(stored).all():
            item = int((~torch.isfinite(stored).flatten(1).all(dim=1)).nonzero()[0])
            name = batch[item // len(views)][1].reference.name
            raise DataError(
                f"the latent of {name} is not finite in {self._recipe.latent_dtype} (computed in {self._dtype}); "
                "use --latent-dtype float32 or --dtype fp32"
            )
        self.timing.encoding += time.perf_counter() - start
        self.timing.images += len(batch)
        return stored

    def _encode(self, view: Tensor, batch: list[NumberedCrop], copy: int) -> Tensor:
        if not isinstance(self._network, KLAutoencoder):
            return self._network.encode(view)
        numbers = [2 * image + copy for image, _ in batch]
        noise = sample_noise(self._recipe.seed, numbers, self._writer.plan.latent_shape).to(view)
        padding = noise.new_zeros((len(view) - len(batch), *noise.shape[1:]))
        return self._network.encode(view, torch.cat([noise, padding]))


def _record(key: str, where: str, error: DataError) -> DamagedRecord:
    """What the manifest says of a damaged image or shard, without the place where it lay."""
    name = printable(key)
    return DamagedRecord(picture=name, reason=str(error).replace(printable(where), name))


def _rates(timings: list[Timing], recipe: EncodeDatasetRecipe) -> tuple[float | None, float | None, float | None]:
    """Images per second of the decoders and of the networks, over all processes, and the share spent waiting."""
    busy = [timing for timing in timings if timing.images]
    if not busy:
        return None, None, None
    decoders = sum(timing.images * recipe.num_workers / max(timing.decoding, 1e-9) for timing in busy)
    networks = sum(timing.images / timing.encoding for timing in busy)
    waited = sum(timing.waiting for timing in busy)
    return decoders, networks, waited / (waited + sum(timing.encoding for timing in busy))
