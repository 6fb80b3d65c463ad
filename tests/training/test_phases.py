"""Each phase changes exactly what it says, down to BatchNorm's statistics."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch

from dcae_core.checkpoints import load_autoencoder
from dcae_core.models.autoencoder import Autoencoder
from dcae_core.training.run_directory import RunDirectory
from dcae_core.training.trained_parts import modules_of_part
from tests.small import small_config
from tests.training.small_runs import GAN, losses_of, phase, recipe_for, train

CHANGED = {
    "latent_adaptation": ["encoder.head.", "decoder.stem."],
    "local_refinement": ["decoder.head."],
}


def changed_tensors(before: Autoencoder, after: Autoencoder) -> set[str]:
    state = after.state_dict()
    return {name for name, value in before.state_dict().items() if not torch.equal(value, state[name])}


def test_each_phase_changes_its_parts_and_nothing_else(tmp_path: Path) -> None:
    train(
        recipe_for(
            tmp_path,
            phase(),
            phase("latent_adaptation", resolution=24),
            phase("local_refinement", losses={"l1": 1.0, "adversarial": GAN}),
        )
    )
    saved = {name: load_autoencoder(tmp_path / "run" / "phases" / name, prepare=False) for name in ("full", *CHANGED)}
    names = list(saved)
    for before, after in pairwise(names):
        changed = changed_tensors(saved[before], saved[after])
        expected = {
            name
            for name in saved[after].state_dict()
            if any(name.startswith(prefix) for prefix in CHANGED[after]) and not name.endswith("num_batches_tracked")
        }
        assert changed == expected


def test_full_phase_changes_everything(tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path)
    train(recipe)
    torch.manual_seed(recipe.seed)
    from dcae_core.training.checks import autoencoder_config_of

    first = Autoencoder(autoencoder_config_of(recipe.network))
    after = load_autoencoder(tmp_path / "run" / "autoencoder", prepare=False)
    assert changed_tensors(first, after) == set(first.state_dict())


def test_later_phase_starts_from_the_averages(tmp_path: Path) -> None:
    """A second phase whose steps change nothing gives the averages of the first, not its last weights."""
    still = {"learning_rate": 1e-30}
    train(recipe_for(tmp_path, phase(), phase("latent_adaptation", optimiser=still)))
    full = load_autoencoder(tmp_path / "run" / "phases" / "full", prepare=False)
    result = load_autoencoder(tmp_path / "run" / "autoencoder", prepare=False)
    assert changed_tensors(full, result) == set()


def test_adjacent_stages_join_a_head(tmp_path: Path) -> None:
    network = Autoencoder(small_config(depths=(0, 1, 1)))
    head = modules_of_part(network, "encoder_head", 1)
    assert head == [network.encoder.head, network.encoder.stages[2]]
    assert modules_of_part(network, "decoder_stem", 1) == [network.decoder.stem, network.decoder.stages[2]]
    assert modules_of_part(network, "decoder_head", 1) == [network.decoder.head, network.decoder.stages[1]]


def test_one_phase_alone_starts_from_the_one_before(tmp_path: Path) -> None:
    phases = [phase(steps=2), phase("latent_adaptation", steps=2), phase("local_refinement", steps=2)]
    train(recipe_for(tmp_path, *phases, run_dir=str(tmp_path / "together")))
    recipe = recipe_for(tmp_path, *phases)
    for name in ("full", "latent_adaptation", "local_refinement"):
        train(recipe, phase=name)
        assert RunDirectory(tmp_path / "run").latest() is not None
    a, b = (load_autoencoder(tmp_path / run / "autoencoder", prepare=False) for run in ("run", "together"))
    assert changed_tensors(a, b) == set()
    assert losses_of(tmp_path / "run") == losses_of(tmp_path / "together")


def test_fine_tuning_starts_from_saved_weights(tmp_path: Path) -> None:
    start = train(recipe_for(tmp_path))
    network = {"weights": str(start)}
    tuned = phase("local_refinement", losses={"l1": 1.0}, optimiser={"learning_rate": 1e-30})
    result = train(recipe_for(tmp_path, tuned, network=network, run_dir=str(tmp_path / "tuned")))
    a, b = load_autoencoder(start, prepare=False), load_autoencoder(result, prepare=False)
    assert changed_tensors(a, b) == set()


@pytest.mark.parametrize("name", ["latent_adaptation", "local_refinement"])
def test_later_phases_keep_fewer_activations(name: str, tmp_path: Path) -> None:
    from dcae_core.training.checks import autoencoder_config_of
    from dcae_core.training.trained_parts import set_training_mode, train_only

    network = Autoencoder(autoencoder_config_of(recipe_for(tmp_path).network))

    def saved_bytes(parts: tuple[str, ...]) -> int:
        train_only(network, parts)
        set_training_mode(network)
        sizes: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            if not isinstance(tensor, torch.nn.Parameter):
                sizes[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            network(torch.zeros(2, 3, 32, 32)).sum()
        return sum(sizes.values())

    parts = {"latent_adaptation": ("encoder_head", "decoder_stem"), "local_refinement": ("decoder_head",)}[name]
    assert saved_bytes(parts) < 0.75 * saved_bytes(("all",))
