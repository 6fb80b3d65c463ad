"""One evaluation of a diffusion network, and whole sampling, as benchmark subjects."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dcae_core.benchmarking.measuring import Contestant, Subject
from dcae_core.benchmarking.memory import held_bytes
from dcae_core.benchmarking.networks import NamedDenoiser, open_autoencoder, open_denoiser
from dcae_core.benchmarking.settings import PLAIN, BenchSettings
from dcae_core.checkpoints.diffusion import DiffusionParts
from dcae_core.models.compilation import CompiledDenoiser
from dcae_core.models.complexity import autoencoder_complexity, denoiser_complexity
from dcae_core.models.preparation import prepare_for_inference
from dcae_core.pipelines.generate import DiffusionPipeline

_UNKNOWN_SCALE = 1.0  # random weights have none, and speed does not depend on it


def denoise_subject(opened: NamedDenoiser, settings: BenchSettings) -> Subject:
    """One evaluation on a batch of latents at one time."""
    config, batch = opened.config, settings.batch
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, config.in_channels, *config.latent_size, generator=generator)
    x = x.to(settings.device, settings.dtype)
    t = torch.tensor(0.5, device=settings.device)
    y = torch.zeros(batch, dtype=torch.long, device=settings.device)
    ways = {"dcae": opened.network}
    if settings.compiles:
        ways = {"dcae compiled": CompiledDenoiser(opened.network)}
        if PLAIN in settings.against:
            ways["dcae plain"] = opened.network

    def contestant(name: str, network: nn.Module) -> Contestant:
        def call() -> Tensor:
            with torch.inference_mode():
                return network(x, t, y)

        return Contestant(name, call, lambda: held_bytes(network))

    macs = batch * denoiser_complexity(config).macs
    contestants = [contestant(name, network) for name, network in ways.items()]
    return Subject("denoise", f"{opened.name}, batch {batch}", batch, macs, 2 * x.nbytes, contestants)


def sample_subject(opened: NamedDenoiser, settings: BenchSettings) -> tuple[Subject, list[str]]:
    """A batch of classes to pictures: noise, every step of the sampler with guidance, decoding."""
    autoencoder = open_autoencoder(opened.autoencoder, settings.device, settings.dtype)
    decoder = autoencoder.network if settings.plain else prepare_for_inference(autoencoder.network)
    network = CompiledDenoiser(opened.network) if settings.compiles else opened.network
    scale = autoencoder.network.scaling_factor or _UNKNOWN_SCALE
    pipeline = DiffusionPipeline(DiffusionParts(network, decoder, opened.prediction, scale, opened.config))
    classes = [number % max(1, opened.config.num_classes) for number in range(settings.batch)]

    def call() -> Tensor:
        return pipeline.generate(
            classes, settings.guidance_scale, num_steps=settings.num_steps, batch_size=settings.batch
        ).latents

    evaluated = _count_evaluated(network, call)
    size = max(opened.config.latent_size) * decoder.spatial_compression_ratio
    decoding = autoencoder_complexity(decoder.config, size)[1]
    macs = evaluated * denoiser_complexity(opened.config).macs + settings.batch * decoding.macs
    contestant = Contestant(
        "dcae compiled" if settings.compiles else "dcae", call, lambda: held_bytes(network, decoder)
    )
    per_sample = evaluated / settings.batch
    setting = f"{opened.name}, {size} px, batch {settings.batch}, {per_sample:g} evaluations each"
    notes = [f"{autoencoder.name}: random weights, as none are cached"] if autoencoder.random_weights else []
    return Subject("sample", setting, settings.batch, macs, settings.batch * 3 * size**2, [contestant]), notes


def denoiser_subjects(whats: list[str], settings: BenchSettings) -> tuple[list[Subject], list[str]]:
    """Subjects "denoise" and "sample", and notes for the reader.

    Raises:
        UsageError: no such model, or a resolution that does not fit.
    """
    opened = open_denoiser(settings.model, settings.device, settings.dtype, settings.resolution)
    notes = [f"{opened.name}: random weights, as none are cached"] if opened.random_weights else []
    subjects = []
    for what in whats:
        if what == "denoise":
            subjects.append(denoise_subject(opened, settings))
        else:
            subject, more = sample_subject(opened, settings)
            subjects.append(subject)
            notes += more
    return subjects, notes


def _count_evaluated(network: nn.Module, call: Callable[[], object]) -> int:
    """How many latents one call sends through the network, guidance's second half among them."""
    rows = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal rows
        rows += inputs[0].shape[0]

    hook = network.register_forward_pre_hook(count)
    try:
        call()
    finally:
        hook.remove()
    return rows
