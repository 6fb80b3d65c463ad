"""EQ-VAE's and VA-VAE's terms: against closed forms, and in trainings of a few steps."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dcae_core.errors import RecipeError
from dcae_core.recipes.settings import OptimiserSettings
from dcae_core.recipes.train_ae import AlignmentSettings, EquivarianceSettings
from dcae_core.training.alignment import AlignmentTerm, marginal_cosine_loss, marginal_distance_matrix_loss
from dcae_core.training.equivariance import Change, choose_change, shrink_and_turn
from dcae_core.training.losses import l1_loss
from dcae_core.training.train_ae import Reconstruct
from tests.training.small_runs import GAN, assert_same, checkpoint_contents, losses_of, phase, recipe_for, train
from tests.training.test_resuming import run_with_stops, stop_after_parts
from tests.vision_encoders import write_vision_encoder

CHANGES = [Change(side, turns, in_latent=True) for side in (2, 5, 7) for turns in (1, 2, 3)]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Mixing(torch.nn.Module):
    """A toy autoencoder that is equivariant: an orthogonal map of channels, position by position; or is not."""

    def __init__(self, *, is_equivariant: bool) -> None:
        super().__init__()
        self._matrix = torch.linalg.qr(random(3, 3))[0]
        self._ramp = torch.zeros(8, 8) if is_equivariant else torch.linspace(-1, 1, 64).view(8, 8)

    def encode(self, x: torch.Tensor, latent_channels: int | None = None) -> torch.Tensor:
        return torch.einsum("cd,bdhw->bchw", self._matrix, x) + self._ramp

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        ramp = torch.nn.functional.interpolate(self._ramp[None, None], size=z.shape[-2:])
        return torch.einsum("cd,bchw->bdhw", self._matrix, z - ramp[0])


@pytest.mark.parametrize("change", CHANGES)
def test_an_equivariant_autoencoder_has_no_loss(change: Change) -> None:
    x = random(2, 3, 8, 8)
    for is_equivariant in (True, False):
        _, decoded = Reconstruct(Mixing(is_equivariant=is_equivariant))(x, None, change)
        loss = l1_loss(decoded, change.of_images(x, 1)).item()
        assert loss < 1e-5 if is_equivariant else loss > 0.01
        assert l1_loss(Reconstruct(Mixing(is_equivariant=is_equivariant))(x, None)[1], x).item() < 1e-5


def test_images_and_latents_are_treated_alike() -> None:
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert torch.equal(shrink_and_turn(x, 4, 1)[0, 0, 0], torch.tensor([3.0, 7.0, 11.0, 15.0]))
    assert torch.equal(shrink_and_turn(x, 4, 4), x)
    assert torch.allclose(shrink_and_turn(x, 2, 0)[0, 0], torch.tensor([[2.5, 4.5], [10.5, 12.5]]))  # means of 2x2
    large = Change(3, 2, in_latent=True).of_images(random(1, 3, 16, 16), 4)
    assert large.shape == (1, 3, 12, 12)


def test_changes_are_drawn_as_published() -> None:
    """Of latents of 32 positions: sides of 8 to 31, turns of 90 to 270 degrees, in half of the steps."""
    settings = EquivarianceSettings()
    drawn = [choose_change(settings, 32, np.random.default_rng([0, step])) for step in range(4000)]
    in_latent = [change for change in drawn if change is not None and change.in_latent]
    of_images = [change for change in drawn if change is not None and not change.in_latent]
    assert {change.latent_side for change in in_latent} == set(range(8, 32))
    assert {change.turns for change in in_latent} == {1, 2, 3}
    assert {change.turns for change in of_images} == {0}
    assert len(in_latent) / 4000 == pytest.approx(0.5, abs=0.03)
    assert len(of_images) / 4000 == pytest.approx(0.5 * 0.25, abs=0.02)
    single = [choose_change(settings, 1, np.random.default_rng(step)) for step in range(50)]
    assert {(change.latent_side, change.in_latent) for change in single if change is not None} == {(1, True)}


def test_features_that_agree_have_no_loss() -> None:
    z = random(2, 8, 4, 4)
    scaled = z * torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(1)).add(0.5)  # directions count alone
    assert marginal_cosine_loss(z, scaled, 0.0).item() == pytest.approx(0, abs=1e-6)
    assert marginal_distance_matrix_loss(z, scaled, 0.0).item() == pytest.approx(0, abs=1e-6)
    turned = torch.einsum(
        "cd,bdhw->bchw", torch.linalg.qr(random(8, 8, seed=2))[0], z
    )  # distances stay, vectors do not
    assert marginal_distance_matrix_loss(z, turned, 0.0).item() == pytest.approx(0, abs=1e-5)
    assert marginal_cosine_loss(z, turned, 0.0).item() > 0.1


def test_margins_forgive() -> None:
    """Opposite vectors have a cosine of -1; two orthogonal ones beside two equal ones differ by 1 in half the pairs."""
    z = random(1, 4, 3, 3)
    assert marginal_cosine_loss(z, -z, 0.5).item() == pytest.approx(1.5, abs=1e-6)
    assert marginal_cosine_loss(z, -z, 2.0).item() == 0
    orthogonal, equal = torch.eye(2).view(1, 2, 2, 1), torch.ones(1, 2, 2, 1)
    assert marginal_distance_matrix_loss(orthogonal, equal, 0.0).item() == pytest.approx(0.5)
    assert marginal_distance_matrix_loss(orthogonal, equal, 0.25).item() == pytest.approx(0.375)


def test_the_adaptive_weight_is_the_ratio_of_gradients(tmp_path: Path) -> None:
    model = str(write_vision_encoder(tmp_path / "dino"))
    optimiser = OptimiserSettings(learning_rate=1e-3)
    layer = torch.tensor([1.0, 2.0], requires_grad=True)
    for adaptive, expected in ((True, 0.1 * 6), (False, 0.1)):
        settings = AlignmentSettings(model=model, adaptive=adaptive)
        term = AlignmentTerm(settings, 4, optimiser, 10, (0,), torch.device("cpu"))
        assert term.weight((3 * layer).sum(), (0.5 * layer).sum(), layer).item() == pytest.approx(expected, rel=1e-3)


def test_channels_that_are_left_out_count_as_zero(tmp_path: Path) -> None:
    settings = AlignmentSettings(model=str(write_vision_encoder(tmp_path / "dino")))
    term = AlignmentTerm(settings, 4, OptimiserSettings(learning_rate=1e-3), 10, (0,), torch.device("cpu"))
    z, x = random(2, 4, 2, 2), random(2, 3, 8, 8).clamp(-1, 1)
    z[:, 3:] = 0
    assert torch.equal(term.loss(z, x)[0], term.loss(z[:, :3], x)[0])


def terms_of(folder: Path) -> dict[str, object]:
    alignment = {"model": str(folder / "dino"), "weight": 0.5}
    return {"losses": {"l1": 1.0, "adversarial": GAN, "alignment": alignment}, "equivariance": {"probability": 0.5}}


def test_a_training_with_both_stops_and_goes_on_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_vision_encoder(tmp_path / "dino")
    full = phase(resolution=32, steps=6, latent_channels=[2, 4], accumulation=2, **terms_of(tmp_path))
    whole, stopped = (
        recipe_for(tmp_path, full, checkpoints={"every": 3}, run_dir=str(tmp_path / name)) for name in ("a", "b")
    )
    train(whole)
    stop_after_parts(monkeypatch, {3, 8})
    run_with_stops(stopped, 2)
    a, b = (tmp_path / name / "checkpoints" for name in ("a", "b"))
    assert_same(checkpoint_contents(a / "step_6"), checkpoint_contents(b / "step_6"))
    records = [record for record in losses_of(tmp_path / "a") if "alignment_cosine" in record]
    assert records == [record for record in losses_of(tmp_path / "b") if "alignment_cosine" in record]
    assert len(records) == 6
    assert all(0 <= record["alignment_distance"] <= 2 and record["alignment_weight"] > 0 for record in records)
    name = "alignment.safetensors/weight"  # of the linear map, which is trained along
    assert not torch.equal(checkpoint_contents(a / "step_3")[name], checkpoint_contents(a / "step_6")[name])


def test_latents_come_nearer_to_the_features(tmp_path: Path) -> None:
    write_vision_encoder(tmp_path / "dino")
    alignment = {"model": str(tmp_path / "dino"), "weight": 10.0, "adaptive": False, "cosine_margin": 0.0}
    losses = {"l1": 1.0, "alignment": alignment}
    optimiser = {"learning_rate": 1e-2}
    run = train(recipe_for(tmp_path, phase(resolution=32, steps=20, losses=losses, optimiser=optimiser))).parent
    values = [record["alignment_cosine"] for record in losses_of(run) if "alignment_cosine" in record]
    assert np.mean(values[-3:]) < 0.8 * np.mean(values[:3])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"equivariance": {"probability": 0}}, "equivariance.probability"),
        ({"equivariance": {"min_scale": 1}}, "equivariance.min_scale"),
        ({"equivariance": {"smaller_images": 1.5}}, "equivariance.smaller_images"),
        ({"losses": {"l1": 1.0, "alignment": {}}}, "losses.alignment.model: is missing"),
        ({"losses": {"l1": 1.0, "alignment": {"model": "nothing"}}}, "neither a directory nor a hub id"),
        ({"losses": {"l1": 1.0, "alignment": {"model": "a/b", "cosine_margin": 3}}}, "losses.alignment.cosine_margin"),
        ({"losses": {"l1": 1.0, "alignment": {"model": "a/b", "weight": 0}}}, "losses.alignment.weight"),
        (
            {"train": ["decoder"], "losses": {"l1": 1.0, "alignment": {"model": "a/b"}}},
            "losses.alignment: moves the encoder",
        ),
        (
            {"losses": {"l1": 1.0, "adversarial": GAN}, "equivariance": {}},
            "need crops of at least 6 pixels, not 4, to which equivariance shrinks them",
        ),
    ],
)
def test_bad_values_are_faults(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        recipe_for(tmp_path, phase(**changes))
