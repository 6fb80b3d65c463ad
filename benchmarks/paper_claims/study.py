"""What the three studies share: images split in two, networks trained from recipes, results as a table and curves.

Every training is a resumable run of `train_autoencoder` in a directory of its own: stop a study at any moment and
start it again, and it goes on where it was.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dcae_core.checkpoints import load_autoencoder
from dcae_core.data.images import center_crop_adm, image_to_tensor, tensor_to_uint8
from dcae_core.data.sources import find_images
from dcae_core.devices import select_device
from dcae_core.metrics.frechet import Gaussian, GaussianStatistics, frechet_distance
from dcae_core.metrics.reconstruction import psnr
from dcae_core.recipes.loading import read_recipe
from dcae_core.recipes.train_ae import TrainAutoencoderRecipe
from dcae_core.training.checks import check_autoencoder_recipe
from dcae_core.training.losses import load_efficientnet_features
from dcae_core.training.run import RunOptions
from dcae_core.training.trackers import Panel, draw_panels
from dcae_core.training.train_ae import train_autoencoder

HELD_OUT = 8  # one image in so many is for judging
NUM_FEATURES = 80


@dataclass(frozen=True)
class Study:
    """The command line of a study.

    Attributes:
        images: folder to train and judge on.
        out: where runs, `results.json` and `curves.png` go.
        scale: multiplies every number of steps.
        device: where to train.
    """

    images: Path
    out: Path
    scale: float
    device: torch.device

    def steps(self, count: int) -> int:
        """A number of steps, scaled."""
        return max(1, round(count * self.scale))


def parse_arguments(name: str, description: str) -> Study:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--images", type=Path, default=Path("examples/photographs"))
    parser.add_argument("--out", type=Path, default=Path("runs/paper_claims") / name)
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies every number of steps")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    study = Study(arguments.images, arguments.out, arguments.scale, select_device(arguments.device))
    _split(study)
    return study


def _split(study: Study) -> None:
    """Two file lists, so that no study is judged on what it was trained on."""
    paths = [str(Path(image.path).resolve()) for image in find_images([study.images])]
    for name, chosen in (
        ("train.txt", [path for index, path in enumerate(paths) if index % HELD_OUT]),
        ("held_out.txt", paths[::HELD_OUT]),
    ):
        (study.out / name).write_text("\n".join(chosen) + "\n")


def stages(depths: list[int], widths: list[int], latent_channels: int, attention_from: int) -> dict[str, Any]:
    """The fields of a custom network whose encoder and decoder mirror each other, without norms that know batches."""
    blocks = ["res" if stage < attention_from else "evit_glu" for stage in range(len(depths))]
    sides = {"widths": widths, "depths": depths, "blocks": blocks, "attention_scales": [[] for _ in depths]}
    return {
        "latent_channels": latent_channels,
        **{f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in sides.items()},
        "decoder_norms": ["rms_norm" for _ in depths],
        "decoder_acts": ["silu" for _ in depths],
    }


def train(study: Study, name: str, network: dict[str, Any], phases: list[dict[str, Any]], validate_at: int) -> Path:
    """Train one variant; the folder of its run."""
    folder = study.out / name
    validate_every = max(1, sum(phase["steps"] for phase in phases) // 12)
    document = {
        "command": "train-ae",
        "run_dir": str(folder),
        "network": network,
        "data": {
            "sources": [{"path": str(study.out / "train.txt")}],
            "num_workers": 1,
            "scale": [0.1, 1.0],
            "decoded_cache": str(study.out / "decoded"),
            "cache_shorter_side": 384,
        },
        "phases": phases,
        "validation": {
            "path": str(study.out / "held_out.txt"),
            "resolution": validate_at,
            "num_images": 16,
            "every": validate_every,
        },
        "checkpoints": {"every": 100},
        "latent_statistics_images": 64,
    }
    recipe = read_recipe(json.dumps(document), name, TrainAutoencoderRecipe, None, check_autoencoder_recipe)
    print(f"{name}: {sum(phase['steps'] for phase in phases)} steps", flush=True)
    train_autoencoder(recipe, RunOptions(study.device))
    return folder


def phase(name: str, resolution: int, batch_size: int, steps: int, rate: float, **settings: Any) -> dict[str, Any]:
    return {
        "name": name,
        "resolution": resolution,
        "batch_size": batch_size,
        "steps": steps,
        "losses": {"l1": 1.0, "efficientnet": 0.05},
        "optimiser": {
            "learning_rate": rate,
            "warmup_steps": min(20, steps - 1),
            "schedule": "cosine",
            "final_fraction": 0.05,
            "clip_gradient_norm": 1.0,
        },
        "ema": {"decay": 0.99, "warmup_steps": 20},
    } | settings


def validation_curve(folder: Path, figure: str = "psnr") -> list[tuple[float, float]]:
    """(step, figure) of a run's validations."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    name = f"validation.{figure}"
    return [(record["step"], record[name]) for record in records if name in record]


@torch.no_grad()
def judge(study: Study, autoencoder: Path, resolution: int) -> dict[str, float]:
    """Figures on the held-out images at one resolution (ADM centre crop, 8-bit pixels).

    psnr: mean over images. sharpness: energy of neighbouring pixels' differences, of the reconstructions over that
    of the images; 1 is as sharp as the image. frechet: distance between EfficientNet-Lite0 features (1/16 of the
    resolution, every position a sample) of images and reconstructions, over the variance of the images' features:
    a small stand-in for rFID.
    """
    network = load_autoencoder(autoencoder, device=study.device, prepare=False)
    features = load_efficientnet_features().to(study.device)
    statistics = [GaussianStatistics(NUM_FEATURES), GaussianStatistics(NUM_FEATURES)]
    ratios, energies = [], torch.zeros(2)
    for x in _held_out(study, resolution):
        before, after = tensor_to_uint8(x), tensor_to_uint8(network(x))
        ratios.append(psnr(before, after))
        for index, pixels in enumerate((before, after)):
            image = pixels.float() / 127.5 - 1
            energies[index] += (image.diff(dim=-1).square().mean() + image.diff(dim=-2).square().mean()).cpu()
            statistics[index].update(features(image)[-1].permute(0, 2, 3, 1).reshape(-1, NUM_FEATURES))
    gaussians = [Gaussian(each.mean, each.covariance) for each in statistics]
    return {
        "psnr": round(float(torch.cat(ratios).mean()), 3),
        "sharpness": round(float(energies[1] / energies[0]), 3),
        "frechet": round(frechet_distance(*gaussians) / float(gaussians[0].covariance.trace()), 4),
    }


def _held_out(study: Study, resolution: int) -> Iterator[Tensor]:
    for image in find_images([study.out / "held_out.txt"]):
        yield image_to_tensor(center_crop_adm(image.open(), resolution))[None].to(study.device)


def report(study: Study, results: dict[str, dict[str, float]], panels: list[Panel]) -> None:
    """Print the table, and write it and the curves beside the runs."""
    columns = list(dict.fromkeys(name for row in results.values() for name in row))
    print("| variant | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for name, row in results.items():
        print(f"| {name} | " + " | ".join(str(row.get(column, "-")) for column in columns) + " |")
    (study.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    draw_panels(panels, study.out / "curves.png")
