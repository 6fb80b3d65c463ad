"""Make what the model card of the embedded diffusion model shows: figures, nearest training images, curve and grids.

    python scripts/judge_emoji.py runs/emoji-diffusion --images runs/emoji -o out/judged

judges the newest checkpoint of a run, or any diffusion model of these classes; without one, the embedded model.
IMAGES is what `scripts/gather_emoji.py` has filled: `train/CLASS/*.png`, `held_out/CLASS/*.png`. OUT then holds

    figures.md        Fréchet distances of small features (those of `dcae eval --frechet`: ours, no FID) and distances
                      to the nearest training image, each beside what real images come to
    samples.png       the first 64 of the samples that the Fréchet distances are of
    nearest.png       64 samples: sample | nearest training image in the latent | nearest in pixels
    nearest.md        the same as a table, with distances
    curve.png         the loss of a run
    checkpoints.png   five of the grids in a run's samples/

Samples are drawn as `dcae sample` draws them, with the embedded model's guidance scale, sampler and steps; those that
Fréchet distances are of have the training images' classes, as often as these.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from dcae_core import load_diffusion
from dcae_core.checkpoints.training_runs import GRIDS_NAME, is_training_run, read_metrics
from dcae_core.data.class_names import parse_classes
from dcae_core.data.images import tensor_to_uint8, uint8_to_image, uint8_to_tensor
from dcae_core.data.sources import find_images
from dcae_core.metrics.frechet import Gaussian, GaussianStatistics, frechet_distance
from dcae_core.pipelines.comparison import image_grid
from dcae_core.pipelines.evaluation.inputs import ImageFiles
from dcae_core.pipelines.evaluation.parts import EMBEDDED_FEATURES, EmbeddedFeatureMeasurement
from dcae_core.pipelines.generate import DiffusionPipeline, SampleSettings
from dcae_core.training.trackers import Panel, draw_panels
from dcae_core.zoo import DENOISERS, EMBEDDED_DENOISER

BATCH, SHOWN, CHECKPOINTS = 32, 64, 5
SAMPLING = DENOISERS[EMBEDDED_DENOISER].sampling


class Images(NamedTuple):
    """Read or drawn: `pixels` uint8 (N, 3, H, W), `latents` float32 (N, C, h, w), a name and a class name for each."""

    pixels: Tensor
    latents: Tensor
    names: list[str]
    classes: list[str]


class Nearest(NamedTuple):
    """Of each image: the distance (N,) to the nearest training image, and which that is (N,)."""

    distances: Tensor
    indices: Tensor


def read(directory: Path, pipeline: DiffusionPipeline) -> Images:
    """Images in folders of their classes, cut as they were for the training, and their latents."""
    found = find_images([directory])
    source = ImageFiles(found, pipeline.config.latent_size[0] * pipeline.autoencoder.spatial_compression_ratio)
    batches = [range(start, min(start + BATCH, len(found))) for start in range(0, len(found), BATCH)]
    pixels = torch.cat([batch.images for batch in source.batches(batches)])
    latents = torch.cat([pipeline.autoencoder.encode(uint8_to_tensor(part)) for part in pixels.split(BATCH)])
    names = [image.key.removesuffix(".png") for image in found]
    return Images(pixels, latents, names, [name.split("/")[0] for name in names])


def draw(pipeline: DiffusionPipeline, classes: Sequence[str], settings: SampleSettings) -> Images:
    """A sample of each class that is named."""
    numbers = parse_classes(",".join(classes), pipeline.config.num_classes, pipeline.class_names)
    batches = []
    for batch in pipeline.generate_batches(numbers, settings, batch_size=BATCH):
        batches.append(batch)
        print(f"  {batch.indices.stop} of {len(numbers)} samples", flush=True)
    pixels, latents = torch.cat([b.pixels for b in batches]), torch.cat([b.latents for b in batches])
    return Images(pixels, latents, [f"sample {index}" for index in range(len(numbers))], list(classes))


def decode(pipeline: DiffusionPipeline, latents: Tensor) -> Tensor:
    """Latents (N, C, h, w) -> uint8 (N, 3, H, W): what the best diffusion model could at most do."""
    return torch.cat([tensor_to_uint8(pipeline.autoencoder.decode(part)) for part in latents.split(BATCH)])


def gaussian(measure: EmbeddedFeatureMeasurement, pixels: Tensor) -> Gaussian:
    """Mean and covariance of the small features of images."""
    rows = torch.cat([measure(part)[EMBEDDED_FEATURES] for part in pixels.split(BATCH)])
    statistics = GaussianStatistics(rows.shape[1])
    statistics.update(rows)
    return Gaussian(statistics.mean, statistics.covariance)


def nearest_latents(images: Images, training: Images) -> Nearest:
    """By the root mean square difference, each channel in its standard deviations over the training latents."""
    deviation = training.latents.std(dim=(0, 2, 3), keepdim=True)
    return _nearest(images.latents / deviation, training.latents / deviation)


def nearest_pixels(images: Images, training: Images) -> Nearest:
    """By the root mean square difference, in levels of 255."""
    return _nearest(images.pixels.float(), training.pixels.float())


def _nearest(a: Tensor, b: Tensor) -> Nearest:
    rows, others = a.flatten(1), b.flatten(1)
    # Not by matrix products, which lose what is nearly equal.
    exactly = "donot_use_mm_for_euclid_dist"
    found = [torch.cdist(part, others, compute_mode=exactly).min(dim=1) for part in rows.split(BATCH)]
    distances = torch.cat([each.values for each in found]) / rows.shape[1] ** 0.5
    return Nearest(distances, torch.cat([each.indices for each in found]))


def describe_nearest(name: str, images: Images, training: Images) -> str:
    """A row: median, least and largest distance to the nearest training image, in latents and in pixels."""
    cells = []
    for nearest, digits in ((nearest_latents(images, training), 2), (nearest_pixels(images, training), 1)):
        values = (nearest.distances.median(), nearest.distances.min(), nearest.distances.max())
        cells.append(" / ".join(f"{value:.{digits}f}" for value in values))
    return f"| {name} | {len(images.names)} | {' | '.join(cells)} |"


def show_nearest(samples: Images, training: Images, out: Path) -> None:
    """The picture and the table of the training images that are nearest to samples."""
    by_latent, by_pixels = nearest_latents(samples, training), nearest_pixels(samples, training)
    rows = [
        "| sample | class | nearest in the latent | distance | nearest in pixels | distance |",
        "|---|" + "---|" * 5,
    ]
    triples = []
    for index, label in enumerate(samples.classes):
        first, second = int(by_latent.indices[index]), int(by_pixels.indices[index])
        rows.append(
            f"| {index} | {label} | {training.names[first]} | {by_latent.distances[index]:.2f} "
            f"| {training.names[second]} | {by_pixels.distances[index]:.1f} |"
        )
        panels = (samples.pixels[index], training.pixels[first], training.pixels[second])
        triple = uint8_to_image(torch.cat(panels, dim=2))
        framed = Image.new("RGB", (triple.width + 24, triple.height + 8), "white")
        framed.paste(triple, (8, 4))
        triples.append(framed)
    image_grid(triples, len(triples), samples.classes).save(out / "nearest.png")
    (out / "nearest.md").write_text("\n".join(rows) + "\n", encoding="utf-8")


def show_run(run: Path, out: Path) -> None:
    """The loss of a run, and the grids of steps that divide it evenly, the first and the last among them."""
    loss = [(record["step"], record["loss"]) for record in read_metrics(run) if "loss" in record]
    draw_panels([Panel("loss", {"training": loss})], out / "curve.png")
    grids = {int(path.stem.removeprefix("step_")): path for path in (run / GRIDS_NAME).glob("step_*.png")}
    steps = sorted(grids)
    chosen = sorted({steps[round(part * (len(steps) - 1) / (CHECKPOINTS - 1))] for part in range(CHECKPOINTS)})
    captions = [f"after {step:,} steps" for step in chosen]
    image_grid((Image.open(grids[step]) for step in chosen), len(chosen), captions).save(out / "checkpoints.png")


@torch.inference_mode()
def judge(model: Path | None, images: Path, out: Path, num: int, guidance_scale: float | None) -> None:
    """Make all of it."""
    out.mkdir(parents=True, exist_ok=True)
    if model is not None and is_training_run(model):
        show_run(model, out)
    pipeline = load_diffusion(model)
    settings = SampleSettings.of_model(SAMPLING, guidance_scale)
    training, held_out = (read(images / part, pipeline) for part in ("train", "held_out"))
    spread = [index * len(training.names) // num for index in range(num)]
    print(f"samples for Fréchet distances at guidance {settings.guidance_scale:g}:")
    samples = draw(pipeline, [training.classes[index] for index in spread], settings)
    first = [index * num // SHOWN for index in range(min(num, SHOWN))]
    captions = [samples.classes[index] for index in first]
    shown = (uint8_to_image(samples.pixels[index]) for index in first)
    image_grid(shown, len(first), captions).save(out / "samples.png")
    measure = EmbeddedFeatureMeasurement("cpu")
    references = {"training images": training, "held-out images": held_out}
    measured = {
        f"{num} samples": samples.pixels,
        f"{num} training images through the autoencoder": decode(pipeline, training.latents[spread]),
    }
    against = [gaussian(measure, each.pixels) for each in references.values()]
    rows = [f"| Fréchet distance to | {' | '.join(references)} |", "|---|---|---|"]
    for name, pixels in measured.items():
        own = gaussian(measure, pixels)
        rows.append(f"| {name} | {' | '.join(f'{frechet_distance(own, each):.3f}' for each in against)} |")
    rows.append(f"| training images | 0 | {frechet_distance(*against):.3f} |")
    classes = SAMPLING.classes or ()
    print("samples beside their nearest training images:")
    drawn = draw(pipeline, [name for name in classes for _ in range(SHOWN // len(classes))], settings)
    show_nearest(drawn, training, out)
    rows += ["", "| nearest training image of | n | latent: median / least / most | pixels |", "|---|---|---|---|"]
    rows += [describe_nearest("samples", drawn, training), describe_nearest("held-out images", held_out, training)]
    (out / "figures.md").write_text("\n".join(rows) + "\n", encoding="utf-8")
    print((out / "figures.md").read_text(encoding="utf-8"))


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", help="run or directory; left out: the embedded model")
    parser.add_argument("--images", type=Path, default=Path("runs/emoji"), help="with train/ and held_out/")
    parser.add_argument("-o", "--out", type=Path, default=Path("out/judged"), help="directory to fill")
    parser.add_argument("--num", type=int, default=1024, help="samples that the Fréchet distances are of")
    parser.add_argument("--cfg", type=float, help="guidance scale; left out: the embedded model's")
    options = parser.parse_args()
    judge(options.model, options.images, options.out, options.num, options.cfg)
    return 0


if __name__ == "__main__":
    sys.exit(main())
