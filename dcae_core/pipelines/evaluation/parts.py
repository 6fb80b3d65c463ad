"""An evaluation divided into parts, each measured once: by any number of processes, stopped and continued at will.

The division depends on the number of images and the batch size alone, and results are put together in the order of
the parts. So the number at the end is the same for any number of processes and stops.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import functional as F

from dcae_core.checkpoints import load_autoencoder
from dcae_core.data.images import tensor_to_uint8, uint8_to_tensor
from dcae_core.distributed import barrier, broadcast_object, is_main, rank, world_size
from dcae_core.errors import CheckpointError, DataError, UsageError
from dcae_core.files import lock, make_directory, write_bytes
from dcae_core.metrics.inception import InceptionExtractor, ResizeRule
from dcae_core.metrics.lpips import LPIPS
from dcae_core.metrics.reconstruction import psnr, ssim
from dcae_core.models.autoencoder import Autoencoder
from dcae_core.models.inference import prepare_for_inference
from dcae_core.pipelines.evaluation.inputs import ImageSource
from dcae_core.progress import Advance
from dcae_core.weights import fingerprint

FEATURES, LOGITS, EMBEDDED_FEATURES = "features", "logits", "embedded_features"
SPATIAL_FEATURES, DINOV2_FEATURES, CLIP_EMBEDDINGS = "spatial_features", "dinov2_features", "clip_embeddings"
ORIGINAL = "original_"  # before the name of features: of the image that went into an autoencoder
ORIGINAL_FEATURES = ORIGINAL + FEATURES
ENLARGED = "enlarged"
LATENT_SUM, LATENT_SQUARE_SUM, LATENT_POSITIONS = "latent_sum", "latent_square_sum", "latent_positions"
_NUM_PARTS = 64  # wanted at least, so that processes share evenly ...
_LARGEST_PART = 1024  # ... and at most this many images are measured again after a stop

Measure = Callable[[Tensor], dict[str, Tensor]]
"""Measures of uint8 images (B, 3, H, W): per image (B, ...)."""


@dataclass
class Part:
    """What was measured on some images.

    Attributes:
        tensors: name -> one row for each good image.
        indices: (N,) int64, which images the rows belong to.
        damaged: a line for each image that could not be decoded.
    """

    tensors: dict[str, Tensor]
    indices: Tensor
    damaged: list[str] = field(default_factory=list)


def divide(count: int, batch_size: int) -> list[range]:
    """Split `count` images into parts of whole batches (the last one may be short)."""
    batches = min(count // (batch_size * _NUM_PARTS), _LARGEST_PART // batch_size)
    size = batch_size * max(1, batches)
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def evaluation_key(**ingredients: Any) -> str:
    """A name that is the same for the same evaluation and for no other: 16 hexadecimal digits.

    `ingredients` are the settings, fingerprints and hashes that results depend on, of types that JSON knows.
    """
    ingredients |= {"torch": torch.__version__, "dcae": version("dcae")}
    text = json.dumps(ingredients, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


class PartStore:
    """Finished parts on disk, each written whole or not at all.

    A directory for each evaluation; with processes on several machines, one that all of them see.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = make_directory(directory)

    def _path(self, number: int) -> Path:
        return self.directory / f"part_{number:06d}.safetensors"

    def save(self, number: int, part: Part) -> None:
        """Keep a finished part."""
        tensors = {name: tensor.contiguous() for name, tensor in part.tensors.items()} | {"indices": part.indices}
        write_bytes(self._path(number), safetensors.torch.save(tensors, {"damaged": json.dumps(part.damaged)}))

    def load(self, number: int) -> Part:
        """Read a finished part; DataError if it is missing or damaged."""
        try:
            with safe_open(self._path(number), framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dictionary
                damaged = json.loads(file.metadata()["damaged"])
        except (OSError, SafetensorError) as error:
            raise DataError(
                f"{self._path(number)} is missing or damaged: processes on several machines need a --work directory "
                "that all of them see; run the command again"
            ) from error
        return Part(tensors, tensors.pop("indices"), damaged)

    def is_finished(self, number: int) -> bool:
        """Whether a part is there and whole."""
        if not self._path(number).exists():
            return False
        try:
            self.load(number)
        except DataError:
            return False
        return True

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the parts against a second run of the same evaluation; on success they are thrown away at the end.

        Raises:
            UsageError: another one is at it.
        """
        in_use = f"the same evaluation is running already, with its parts in {self.directory}; wait for it or stop it"
        with lock(self.directory / ".lock", in_use) if is_main() else nullcontext():
            yield
            if is_main():
                self.remove()

    def remove(self) -> None:
        """Throw the parts away, once what they add up to is known."""
        shutil.rmtree(self.directory, ignore_errors=True)


def measure_parts(
    source: ImageSource, measure: Measure, store: PartStore, batch_size: int, advance: Advance
) -> Iterator[Part] | None:
    """Measure what is not measured yet, shared among the processes.

    In the main process, returns all parts in order, read from disk one at a time; None in the others.
    """
    batch_size = min(batch_size, len(source))
    parts = divide(len(source), batch_size)
    pending = broadcast_object([number for number in range(len(parts)) if not store.is_finished(number)])
    left = len(source)

    def show(count: int) -> None:
        nonlocal left
        if step := min(count, left):  # never more than the whole
            left -= step
            advance(step)

    show(len(source) - sum(len(parts[number]) for number in pending))
    for number in pending[rank() :: world_size()]:
        # The others are about as far with their parts as this process is with its own.
        part = _measure_part(source, measure, parts[number], batch_size, lambda n: show(n * world_size()))
        store.save(number, part)
    barrier()
    show(left)
    return (store.load(number) for number in range(len(parts))) if is_main() else None


def _measure_part(source: ImageSource, measure: Measure, indices: range, batch_size: int, advance: Advance) -> Part:
    batches = [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
    rows: dict[str, list[Tensor]] = {}
    good: list[int] = []
    damaged: list[str] = []
    for chosen, batch in zip(batches, source.batches(batches), strict=True):
        measured = measure(_pad(batch.images, batch_size))
        keep = torch.tensor([place for place in range(len(chosen)) if place not in batch.damaged], dtype=torch.int64)
        measured[ENLARGED] = torch.tensor([place in batch.enlarged for place in range(len(batch.images))])
        for name, tensor in measured.items():
            rows.setdefault(name, []).append(tensor[keep])
        good += [chosen[place] for place in keep.tolist()]
        damaged += batch.damaged.values()
        advance(len(chosen))
    return Part({name: torch.cat(tensors) for name, tensors in rows.items()}, torch.tensor(good), damaged)


def _pad(images: Tensor, batch_size: int) -> Tensor:
    """Repeat the last image up to a full batch: a network's float32 results move with the shape of its batch."""
    missing = batch_size - len(images)
    return torch.cat((images, images[-1:].expand(missing, -1, -1, -1))) if missing else images


class FeatureMeasurement:
    """Inception features of images from anywhere, resized by a rule; logits and spatial ones where asked for."""

    def __init__(
        self,
        extractor: InceptionExtractor,
        *,
        with_logits: bool = False,
        with_spatial: bool = False,
        resize: ResizeRule = "half_pixel",
    ) -> None:
        self._extractor = extractor
        self._resize = resize
        self._with_logits, self._with_spatial = with_logits, with_spatial

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Rows `features` (B, 2048), `logits` (B, 1008), `spatial_features` (B, 2023).

        DataError where the network gives values not finite.
        """
        output = self._extractor(images, with_logits=self._with_logits, resize=self._resize)
        if not torch.isfinite(output.features).all():
            raise DataError("the Inception network gives features that are not finite numbers (NaN): check its weights")
        rows = {FEATURES: output.features} | ({LOGITS: output.logits} if output.logits is not None else {})
        return rows | ({SPATIAL_FEATURES: output.spatial} if self._with_spatial else {})


class EmbeddedFeatureMeasurement:
    """Features without a download: mean and deviation, over positions, of the embedded autoencoder's latent channels.

    Ours. They tell colours, contrast and texture, and know nothing of objects.
    """

    def __init__(self, device: torch.device | str) -> None:
        plain = load_autoencoder(device=device, prepare=False)
        self.fingerprint = fingerprint(plain)
        self._network = prepare_for_inference(plain)
        self._device = next(self._network.parameters()).device

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Rows `embedded_features` (B, 64). Sides are continued by their last pixels to a multiple of 32."""
        stride = self._network.spatial_compression_ratio
        height, width = images.shape[-2:]
        x = F.pad(uint8_to_tensor(images.to(self._device)), (0, -width % stride, 0, -height % stride), "replicate")
        latent = self._network.encode(x).flatten(2)
        features = torch.cat([latent.mean(dim=2), latent.std(dim=2, correction=0)], dim=1)
        return {EMBEDDED_FEATURES: features.cpu()}


def measure_together(measures: Sequence[Measure]) -> Measure:
    """All rows of several measures."""

    def measure(images: Tensor) -> dict[str, Tensor]:
        return {name: rows for each in measures for name, rows in each(images).items()}

    return measure


class ReconstructionMeasurement:
    """Images through an autoencoder, compared with what comes out, and its latents.

    The network computes where its weights are, in their number type. `with_original_features`: also take the features
    of the images themselves, as the reference.

    Source: the published evaluation (efficientvit aecore/evaluator.py): images are 8-bit before every metric.
    """

    def __init__(
        self,
        network: Autoencoder,
        metrics: Collection[str],
        *,
        lpips: LPIPS | None = None,
        features: Measure | None = None,
        with_original_features: bool = False,
    ) -> None:
        self._network = network
        self._metrics = metrics
        self._lpips = lpips
        self._features = features
        self._with_original_features = with_original_features
        weight = next(network.parameters())
        self._device, self._dtype = weight.device, weight.dtype

    @torch.inference_mode()
    def reconstruct(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The reconstruction, uint8 (B, 3, H, W), and the latent, float32 (B, C, h, w), on the network's device.

        UsageError if the sides are no multiples of the network's stride, CheckpointError at NaN or infinite values.
        """
        stride = self._network.spatial_compression_ratio
        height, width = images.shape[-2:]
        if height % stride or width % stride:
            raise UsageError(
                f"images of {width}x{height} do not fit a network of stride {stride}: give --resolution a multiple "
                f"of {stride}, such as {max(stride, min(height, width) // stride * stride)}"
            )
        x = uint8_to_tensor(images.to(self._device)).to(self._dtype)
        latent = self._network.encode(x)
        decoded = self._network.decode(latent)
        if not torch.isfinite(decoded).all():
            raise CheckpointError(
                "the network gives NaN or infinite values: its weights are damaged, or too large for this --dtype "
                "(take fp32 or bf16)"
            )
        return tensor_to_uint8(decoded), latent.float()

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Rows for each metric, and sums of each latent channel; raises what `reconstruct` does."""
        decoded, latent = self.reconstruct(images)
        original = images.to(self._device)
        rows = _latent_rows(latent)
        if "psnr" in self._metrics:
            rows["psnr"] = psnr(original, decoded)
        if "ssim" in self._metrics:
            rows["ssim"] = ssim(original, decoded)
        if self._lpips is not None:
            rows["lpips"] = self._lpips(uint8_to_tensor(original), uint8_to_tensor(decoded))
        if self._features is not None:
            rows |= self._features(decoded)
            if self._with_original_features:
                seen = self._features(original)
                rows |= {f"{ORIGINAL}{name}": values for name, values in seen.items() if name != LOGITS}
        return {name: tensor.cpu() for name, tensor in rows.items()}


def _latent_rows(latent: Tensor) -> dict[str, Tensor]:
    values = latent.flatten(2).cpu().double()
    positions = torch.full((len(values),), values.shape[2], dtype=torch.int64)
    return {
        LATENT_SUM: values.sum(dim=2),
        LATENT_SQUARE_SUM: values.square().sum(dim=2),
        LATENT_POSITIONS: positions,
    }
