"""Recipes that fit their schema and not their network: what shows without data, weights or downloads."""

import pytest

from dcae_core.errors import RecipeError
from dcae_core.recipes.loading import find_recipe, load_recipe, schema_of
from dcae_core.training.checks import check_network


def check(name: str, *overrides: str) -> str:
    """What is said about a shipped recipe with these changes; "" if it is right."""
    command = name.split("/")[0].replace("_", "-")
    try:
        load_recipe(find_recipe(name), schema_of(command), list(overrides), check_network)
    except RecipeError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("name", "overrides", "faults"),
    [
        ("train_ae/tiny", ["network.model=nothing"], ["network: ", "nothing"]),
        ("train_ae/tiny", ["network.config.widths=[7]"], ["network: "]),
        ("train_ae/finetune-decoder", ["network.weights=dc-ae-f32"], ["network: ", "dc-ae-f32c32-in-1.0"]),
        ("train_ae/tiny", ["phases.0.resolution=100"], ["phases.full.resolution: 100 is not a multiple of 32"]),
        (
            "train_ae/f32c32-in",
            ["validation.resolution=100", "phases.full.latent_channels=[99]"],
            ["2 faults", "validation.resolution: 100", "phases.full.latent_channels: 99 is more than the 32"],
        ),
        ("train_diffusion/uvit-h-f32", ["resolution=500"], ["resolution: 500 is not a multiple of 32"]),
        ("train_diffusion/uvit-h-f32", ["network.patch_size=3"], ["input_size 16 must be a multiple of patch_size 3"]),
        ("train_diffusion/uvit-s-sd-vae-f8", ["network.num_heads=7"], ["hidden_size 512 must be a multiple"]),
        ("train_diffusion/tiny", ["augmentation={channels: [33]}"], ["augmentation.channels: 33 is more than the 32"]),
        (
            "train_diffusion/uvit-h-f32",
            ["sampling.classes=[1000]", "sampling.sampler=heun"],
            ["2 faults", "sampling.classes: class 1000 does not exist", "sampling: sampler heun does not fit"],
        ),
        ("train_diffusion/tiny", ["network.num_classes=0"], ["sampling: this network has no classes"]),
    ],
)  # fmt: skip
def test_what_does_not_fit_its_network_is_told(name: str, overrides: list[str], faults: list[str]) -> None:
    report = check(name, *overrides)
    for fault in faults:
        assert fault in report


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("train_ae/tiny", "phases.local_refinement.adjacent_stages"),
        ("train_ae/tiny", "phases.local_refinement.losses.adversarial.discriminator.num_layers"),
        ("train_ae/tiny", "phases.local_refinement.resolution"),
        ("train_diffusion/uvit-h-f32", "network.hidden_size"),
        ("train_diffusion/uvit-h-f32", "network.num_classes"),
        ("train_diffusion/uvit-h-f32", "resolution"),
    ],
)
def test_a_value_of_another_type_is_one_fault(name: str, place: str) -> None:
    """The number put in its place, to look at the rest, is not blamed beside the network."""
    report = check(name, f"{place}=two")
    assert report.endswith(f"{name}.yaml: {place}: expected a whole number, not 'two'")


@pytest.mark.parametrize(
    ("parts", "adjacent_stages", "fault"),
    [
        ("encoder_head", 1, ""),
        ("encoder_stem, encoder_head", 2, "the encoder's 2 stages"),
        ("decoder_head", 2, ""),
        ("decoder_stem", 3, "the decoder's 3 stages"),
        ("encoder, decoder_head", 2, ""),
        ("encoder, decoder", 1, "1 beside no stem or head"),
    ],
)
def test_adjacent_stages_are_counted_on_the_side_that_is_trained(parts: str, adjacent_stages: int, fault: str) -> None:
    """The encoder has two stages with something to train, the decoder three."""
    depths = "encoder_depths: [0, 1, 1], decoder_depths: [1, 1, 1]"
    network = f"network.config={{latent_channels: 8, widths: [8, 8, 8], {depths}}}"
    phase = [f"phases.full.train=[{parts}]", f"phases.full.adjacent_stages={adjacent_stages}"]
    report = check("train_ae/tiny", network, "network.init=random", *phase)
    assert fault in report if fault else report == ""


def test_what_must_be_looked_for_elsewhere_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither weights on the hub, nor latents, nor weights of a run that is still to come."""

    def refuse(*_: object) -> None:
        raise AssertionError("looked for elsewhere")

    monkeypatch.setattr("dcae_core.checkpoints.hub.fetch_files", refuse)
    for weights in ("someone/their-autoencoder", "runs/still/to/come"):
        assert check("train_ae/finetune-decoder", f"network.weights={weights}") == ""
    assert check("train_diffusion/tiny", "latents=nowhere", "sampling.fid={reference: no.npz, every: 1000}") == ""
