"""Peak memory of UViT-2B's training step in each of several processes (FSDP2).

    torchrun --nproc-per-node 2 benchmarks/sharded_training_memory.py [--depths 4 8] [--batch 4]

Each line is the most resident memory that any of the processes takes to build the network and go two steps, beside what
counting expects: 20 bytes a parameter (weight, gradient, two moments, average) divided by the number of processes, and
what the forward pass keeps. Both grow in proportion to the depth; the published one is 28.
"""

import argparse

import numpy as np
import torch

from dcae_core.benchmarking.measuring import peak_bytes
from dcae_core.data.latents.loader import LatentBatch
from dcae_core.diffusion.objectives import OBJECTIVES
from dcae_core.distributed import gather_objects, is_main, process_group, world_size
from dcae_core.models import build_denoiser
from dcae_core.models.configs import DenoiserConfig
from dcae_core.recipes.settings import ExecutionSettings, OptimiserSettings
from dcae_core.recipes.train_diffusion import DenoiserSettings, TrainDiffusionRecipe
from dcae_core.training.checks import LatentKind, denoiser_config_of
from dcae_core.training.dry_run import count_memory
from dcae_core.training.parallel import checkpoint_activations, shard
from dcae_core.training.train_diffusion import MODEL, DiffusionBatch, DiffusionTask, TrainingNoise
from dcae_core.training.trained_parts import transformer_blocks

LATENTS = LatentKind((32, 16, 16), num_classes=1000)  # f32c32, 512 px: 258 tokens


def make_recipe(depth: int, batch: int, checkpointing: bool) -> TrainDiffusionRecipe:
    return TrainDiffusionRecipe(
        run_dir="unused",
        latents="",
        network=DenoiserSettings(architecture="uvit", patch_size=1, hidden_size=2048, depth=depth, num_heads=32),
        objective="epsilon",
        steps=2,
        batch_size=batch * world_size(),
        optimiser=OptimiserSettings(learning_rate=1e-4, betas=[0.99, 0.99], weight_decay=0.03),
        execution=ExecutionSettings(sharding="fsdp", activation_checkpointing=checkpointing),
    )


def make_batch(config: DenoiserConfig, size: int) -> DiffusionBatch:
    latents, numbers = torch.randn(size, *LATENTS.shape), np.arange(size)
    read = LatentBatch(latents, torch.zeros(size, dtype=torch.long), numbers, numbers, 0.0)
    return TrainingNoise(0, OBJECTIVES["epsilon"], 0.1, config.num_classes).complete(read)


def measure(recipe: TrainDiffusionRecipe, config: DenoiserConfig) -> int:
    """The most that any process has beyond what it had before the network was built."""

    def train() -> None:
        network = build_denoiser(config)
        if recipe.execution.activation_checkpointing:
            checkpoint_activations(transformer_blocks(network))
        shard([network], transformer_blocks(network))
        task = DiffusionTask(network, recipe, 1.0, None)
        for step in range(recipe.steps):
            (loss,) = task.losses(make_batch(config, recipe.batch_size // world_size()), step)
            loss.value.backward()
            task.networks[MODEL].optimiser.step()
            task.networks[MODEL].optimiser.zero_grad(set_to_none=True)
            task.ema.update()

    return max(gather_objects(peak_bytes(train, torch.device("cpu"))))


def count(recipe: TrainDiffusionRecipe, config: DenoiserConfig) -> tuple[float, float]:
    """Bytes of one process's share of the state, and of what its forward pass keeps."""
    with torch.device("meta"):
        network = build_denoiser(config)
    memory = count_memory(network, config, recipe)
    return (memory.weights + memory.training) / world_size(), memory.activations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depths", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--batch", type=int, default=4, help="latents of each process")
    arguments = parser.parse_args()
    with process_group(torch.device("cpu")):
        for depth in arguments.depths:
            for checkpointing in (False, True):
                recipe = make_recipe(depth, arguments.batch, checkpointing)
                config = denoiser_config_of(recipe, LATENTS)
                peak = measure(recipe, config)
                state, kept = count(recipe, config)
                if is_main():
                    print(
                        f"{world_size()} process(es), depth {depth}, batch {arguments.batch} each, "
                        f"{'with' if checkpointing else 'without'} activation checkpointing: "
                        f"peak {peak / 1e9:.2f} GB each (state {state / 1e9:.2f}, activations {kept / 1e9:.2f})",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
