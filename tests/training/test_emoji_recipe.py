"""The recipe of the embedded diffusion model on drawn images, with a smaller network: 50 steps of it learn."""

from pathlib import Path

from dcae_core.checkpoints.training_runs import read_metrics

from ..drawn_emoji import STEPS, train_shortly


def test_fifty_steps_of_the_recipe_lower_the_loss(tmp_path: Path) -> None:
    run = train_shortly(tmp_path, ["face-smiling", "food-fruit", "flag", "heart"])
    losses = [record["loss"] for record in read_metrics(run) if "loss" in record]
    assert losses[-1] < 0.85 * losses[0], losses
    assert (run / "samples" / f"step_{STEPS}.png").exists()
