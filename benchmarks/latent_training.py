"""What normalisation and times do to a small training: scalar or channel, uniform or logit-normal, same seed and steps.

    python benchmarks/latent_training.py LATENTS IMAGES OUT [--steps 400] [--num 384]

LATENTS is a dataset of `dcae encode-dataset` of IMAGES at --resolution, made by the embedded autoencoder. Each of four
trainings of the same USiT is sampled from the same noise, and its images are compared with IMAGES by the Fréchet
distance of small features: mean and deviation of 64 channels of three random convolutions (seed 0). The figures tell
these trainings apart and nothing else; they are no FID. One line of JSON a training.
"""

import argparse
import json
import time
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn

from dcae_core import load_diffusion
from dcae_core.data.decoded_crops import decode_crops
from dcae_core.data.sources import find_images
from dcae_core.metrics.frechet import Gaussian, GaussianStatistics, frechet_distance
from dcae_core.pipelines.generate import SampleSettings, draw_classes
from dcae_core.recipes.loading import read_recipe
from dcae_core.recipes.train_diffusion import TrainDiffusionRecipe
from dcae_core.training.checks import check_diffusion_recipe
from dcae_core.training.run import RunOptions
from dcae_core.training.train_diffusion import train_diffusion

NETWORK = {"architecture": "uvit", "hidden_size": 96, "depth": 4, "num_heads": 4}
TIMES = {"uniform": {}, "logit_normal": {"distribution": "logit_normal"}}


class Features(nn.Module):
    """Random convolutions, then mean and standard deviation over the image: uint8 (B, 3, H, W) -> (B, 128)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        widths = [(3, 32), (32, 64), (64, 64)]
        convolutions = [nn.Conv2d(*pair, 3, stride=2, padding=1) for pair in widths]
        self.layers = nn.Sequential(*[module for each in convolutions for module in (each, nn.ReLU())])

    @torch.inference_mode()
    def forward(self, pixels: Tensor) -> Tensor:
        """Features of images."""
        maps = self.layers(pixels.float() / 127.5 - 1).flatten(2)
        return torch.cat([maps.mean(2), maps.std(2)], dim=1) * 10


def train(latents: str, run_dir: Path, normalisation: str, times: str, steps: int) -> tuple[float, float]:
    """Train; the mean loss of the last tenth of the steps, and the seconds it took."""
    document = {
        "command": "train-diffusion", "run_dir": str(run_dir), "latents": latents, "network": NETWORK,
        "objective": "velocity", "normalisation": normalisation, "times": TIMES[times],
        "steps": steps, "batch_size": 32,
        "optimiser": {"learning_rate": 1e-3, "warmup_steps": 50, "schedule": "cosine", "clip_gradient_norm": 1.0},
        "ema": {"decay": 0.99, "warmup_steps": 50}, "sampling": None, "logging": {"every": 1},
        "checkpoints": {"every": steps},
    }  # fmt: skip
    recipe = read_recipe(json.dumps(document), "benchmark", TrainDiffusionRecipe, [], check_diffusion_recipe)
    start = time.perf_counter()
    train_diffusion(recipe, RunOptions(torch.device("cpu")))
    losses = [json.loads(line)["loss"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    last = losses[-max(1, steps // 10) :]
    return sum(last) / len(last), time.perf_counter() - start


def distance_of(run_dir: Path, num: int, reference: Gaussian, features: Features) -> float:
    """Sample and compare."""
    pipeline = load_diffusion(run_dir)
    statistics = GaussianStatistics(128)
    settings = SampleSettings(sampler="heun", num_steps=12)
    for batch in pipeline.generate_batches(draw_classes(num, pipeline.config.num_classes, 0), settings, batch_size=64):
        statistics.update(features(batch.pixels))
    return frechet_distance(Gaussian(statistics.mean, statistics.covariance), reference)


def main() -> None:
    """Measure all four."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("latents")
    parser.add_argument("images")
    parser.add_argument("out", type=Path)
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--num", type=int, default=384)
    parser.add_argument("--normalisation", nargs="+", choices=("scalar", "channel"), default=("scalar", "channel"))
    arguments = parser.parse_args()
    features = Features()
    statistics = GaussianStatistics(128)
    for crop in decode_crops(find_images([arguments.images]), arguments.resolution, num_workers=1):
        if crop.pixels is not None:
            statistics.update(features(crop.pixels[None]))
    reference = Gaussian(statistics.mean, statistics.covariance)
    for normalisation, times in product(arguments.normalisation, TIMES):
        run_dir = arguments.out / f"{normalisation}-{times}"
        loss, seconds = train(arguments.latents, run_dir, normalisation, times, arguments.steps)
        distance = distance_of(run_dir, arguments.num, reference, features)
        row = {"normalisation": normalisation, "times": times, "loss": loss, "distance": distance, "seconds": seconds}
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
