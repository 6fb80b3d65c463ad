"""`dcae sample`: classes to images with a released diffusion model or one of your own."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from dcae_cli.completion import complete_diffusion_model, complete_sampler
from dcae_cli.options import (
    Autoguidance,
    Compile,
    Debug,
    Device,
    Dtype,
    GuidanceInterval,
    Json,
    NumProcesses,
    Output,
    Revision,
    parse_compile,
    parse_interval,
)
from dcae_cli.processes import start_processes

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from dcae_core.checkpoints.denoiser_files import DiffusionFiles
    from dcae_core.models.compilation import CompileMode
    from dcae_core.pipelines.generate import DiffusionPipeline, SampleSettings
    from dcae_core.pipelines.sample_directory import SampleDirectory, SampleReport
    from dcae_core.zoo import DenoiserEntry

# The published demonstration image: its 16 classes, and its guidance.
_PRESETS = {"demo": ([279, 333, 979, 936, 933, 145, 497, 1, 248, 360, 793, 12, 387, 437, 938, 978], 6.0)}


def sample(
    model: Annotated[
        str | None,
        typer.Option(
            help="Zoo name, hub id, directory laid out like the hub's, or a run directory of `dcae train-diffusion`; "
            "left out: the embedded model, which draws emoji.",
            metavar="MODEL",
            autocompletion=complete_diffusion_model,
        ),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(help="Classes by number or name, with commas: '207,volcano'; left out: 16.", metavar="LIST"),
    ] = None,
    num: Annotated[int | None, typer.Option(help="Instead: this many, of random classes.", metavar="N")] = None,
    preset: Annotated[
        str | None, typer.Option(help="Instead: 'demo', the published 16 classes at --cfg 6.", metavar="NAME")
    ] = None,
    cfg: Annotated[
        float | None,
        typer.Option(help="Guidance scale; 1 is none, and the default of all but the embedded model.", metavar="SCALE"),
    ] = None,
    cfg_interval: GuidanceInterval = None,
    autoguidance: Autoguidance = None,
    steps: Annotated[int | None, typer.Option(help="Steps; left out: the sampler's default.", metavar="N")] = None,
    sampler: Annotated[
        str | None,
        typer.Option(
            help="dpm-solver, dpm-2m, dpm-3m, ddim or ddpm for networks that predict noise; dopri5, heun, euler or "
            "euler-maruyama for velocity; left out: the published one.",
            metavar="NAME",
            autocompletion=complete_sampler,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Sample i depends on the seed and on i alone.", metavar="N")] = 0,
    output: Output = Path("samples"),
    save_latents: Annotated[
        bool, typer.Option("--save-latents", help="Also write latents.safetensors, unscaled.")
    ] = False,
    autoencoder: Annotated[
        str | None, typer.Option(help="Take the autoencoder from here instead.", metavar="MODEL")
    ] = None,
    weights: Annotated[str, typer.Option(help="ema or raw, where a run of your own has both.", metavar="KIND")] = "ema",
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Samples at once; left out: as memory allows.", metavar="N")
    ] = None,
    tile: Annotated[
        int | None, typer.Option(min=1, help="Decode in tiles of this many pixels.", metavar="PIXELS")
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "fp32",
    compile: Compile = "auto",
    nproc: NumProcesses = 1,
    revision: Revision = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Sample images from a diffusion model.

    Writes grid.png (of up to 100 images) and 0000_c207.png, 0001_c360.png, ... A run that was stopped goes on where
    it was when the same command is given again, and ends with the same bytes.

    \b
    Examples:
      dcae sample -o emoji
      dcae sample --classes "face-smiling,flag,animal-mammal" -o emoji
      dcae sample --model dc-ae-f32c32-in-1.0-usit-h-in-512px --classes "golden retriever,volcano" --cfg 1.5
      dcae sample --model dc-ae-f32c32-in-1.0-uvit-s-in-512px --preset demo -o demo
      dcae sample --model runs/my-run --classes 3 --cfg 2 --autoguidance runs/my-run/checkpoints/step_10000
      dcae sample --model runs/my-run --num 64 --seed 3 --weights raw --save-latents -o samples
    """
    start_processes(nproc)

    from dcae_cli.progress import progress
    from dcae_core.checkpoints.denoisers import locate_diffusion
    from dcae_core.devices import parse_dtype, select_device
    from dcae_core.distributed import is_main, process_group
    from dcae_core.errors import UsageError, unknown_name
    from dcae_core.pipelines.generate import SampleSettings
    from dcae_core.pipelines.sample_directory import sample_into
    from dcae_core.pipelines.tiling import check_tile
    from dcae_core.zoo import find_denoiser

    if preset is not None and preset not in _PRESETS:
        raise unknown_name("--preset", preset, _PRESETS)
    if sum(choice is not None for choice in (classes, num, preset)) > 1:
        raise UsageError("give one of --classes, --num and --preset")
    compute, number_type, compile_mode = select_device(device), parse_dtype(dtype), parse_compile(compile)
    # A released model is known before it is downloaded, so what is wrong with the rest is told first.
    entry = find_denoiser(model) if model and not Path(model).exists() else None
    released = entry if entry is not None and entry.hub_id is not None else None
    files = None if released else locate_diffusion(model, revision, weights)
    known = released or files
    assert known is not None
    scale = cfg if cfg is not None else _PRESETS[preset][1] if preset else None
    settings = SampleSettings.of_model(known.sampling, scale, seed, sampler, steps, parse_interval(cfg_interval))
    settings.check(known.prediction, known.config, autoguided=autoguidance is not None)
    class_names = files.class_names if files else None
    labels = _labels(known, class_names, classes, num, preset, seed)
    given = _Given(model, autoencoder, autoguidance, weights)
    computed = {"dtype": str(number_type).removeprefix("torch."), "tile": tile, "compile": compile_mode}
    directory = _directory(output, labels, given, known, class_names, settings, computed, save_latents=save_latents)
    recorded = directory.recorded_batch_size()
    if recorded is not None and batch_size not in (None, recorded):
        raise UsageError(f"{output} holds a run with --batch-size {recorded}; keep it, or choose another -o")

    with process_group(compute):
        pipeline = _load(
            given, files or locate_diffusion(model, revision, weights), directory, compute, number_type, compile_mode
        )
        if tile is not None:
            check_tile(tile, pipeline.autoencoder.spatial_compression_ratio)
        pipeline.tile = tile
        report = sample_into(
            directory,
            pipeline,
            settings,
            batch_size=recorded or batch_size,
            open_progress=lambda description, total: progress(description, total=total),
        )
        if is_main():
            _print_report(directory, settings, report, json)


class _Given(NamedTuple):
    """The models of a run, as the command line calls them."""

    model: str | None
    autoencoder: str | None
    autoguidance: str | None
    weights: str


def _directory(
    output: Path,
    labels: list[int],
    given: _Given,
    known: "DenoiserEntry | DiffusionFiles",
    class_names: "Sequence[str] | None",
    settings: "SampleSettings",
    computed: dict[str, Any],
    *,
    save_latents: bool,
) -> "SampleDirectory":
    """Where the run goes, with all that its bytes depend on as far as it is known before weights are read.

    `computed`: how, in what number type and tiles.
    """
    from dcae_core.data.class_names import class_names_of
    from dcae_core.diffusion.samplers import DEFAULT_SAMPLERS, find_sampler
    from dcae_core.pipelines.encode import encoder_name
    from dcae_core.pipelines.sample_directory import SampleDirectory

    defaults = {
        "autoencoder": encoder_name(known.autoencoder),
        "sampler": DEFAULT_SAMPLERS[known.prediction],
        "num_steps": find_sampler(settings.sampler, known.prediction).num_steps,
    }
    run = {
        "model": known.name,
        "autoencoder": encoder_name(given.autoencoder) if given.autoencoder else defaults["autoencoder"],
        "weights": given.weights,
        "sampler": settings.sampler or defaults["sampler"],
        "num_steps": defaults["num_steps"] if settings.num_steps is None else settings.num_steps,
        "guidance_scale": settings.guidance_scale,
        "guidance_interval": settings.guidance_interval and list(settings.guidance_interval),
        "autoguidance": given.autoguidance and encoder_name(given.autoguidance),
        "seed": settings.seed,
    }
    return SampleDirectory(
        output,
        labels,
        run | computed,
        save_latents=save_latents,
        class_in_name=known.config.num_classes > 0,
        class_names=class_names_of(known.config.num_classes, class_names),
        defaults=defaults,
    )


def _load(
    given: _Given,
    files: "DiffusionFiles",
    directory: "SampleDirectory",
    device: "torch.device",
    dtype: "torch.dtype",
    compile: "CompileMode",
) -> "DiffusionPipeline":
    """Read all weights, after which the directory knows their fingerprints, or refuses the run."""
    from dcae_cli.progress import progress, warn
    from dcae_core.checkpoints.autoguidance import read_weaker_network, require_same_task
    from dcae_core.checkpoints.denoisers import locate_diffusion, read_diffusion
    from dcae_core.distributed import broadcast_object, is_main
    from dcae_core.pipelines.generate import DiffusionPipeline

    weaker_files = locate_diffusion(given.autoguidance, weights=given.weights) if given.autoguidance else None
    if weaker_files is not None:
        require_same_task(weaker_files, files)
    fingerprints = [each and each.fingerprint() for each in (files, weaker_files)] if is_main() else None
    model_fingerprint, weaker_fingerprint = broadcast_object(fingerprints)
    output = directory.path
    directory.identify(
        {"model_path": _path_from(output, given.model), "autoguidance_path": _path_from(output, given.autoguidance)},
        model_fingerprint=model_fingerprint,
        autoguidance_fingerprint=weaker_fingerprint,
    )
    with progress("loading the weights", total=0):
        weaker = read_weaker_network(weaker_files, files, device, dtype) if weaker_files else None
        parts = read_diffusion(files, autoencoder=given.autoencoder, device=device, dtype=dtype)
    place = {"autoencoder_path": _path_from(output, given.autoencoder or files.autoencoder)}
    directory.identify(place, autoencoder_fingerprint=parts.autoencoder_fingerprint)
    if is_main():
        for line in parts.warnings:
            warn(line)
    return DiffusionPipeline(parts, weaker, compile=compile)


def _path_from(output: Path, model: str | Path | None) -> str | None:
    """Where something on this disk is, seen from the output, so that it says the same wherever both are moved to."""
    import os

    if model is None or not Path(model).exists():
        return None
    return os.path.relpath(Path(model).resolve(), output.resolve())


def _labels(
    known: "DenoiserEntry | DiffusionFiles",
    class_names: "Sequence[str] | None",
    classes: str | None,
    num: int | None,
    preset: str | None,
    seed: int,
) -> list[int]:
    """What to sample, from the one option that says so."""
    from dcae_core.data.class_names import parse_classes
    from dcae_core.errors import UsageError
    from dcae_core.pipelines.generate import default_classes, draw_classes

    num_classes = known.config.num_classes
    if num is not None:
        return draw_classes(num, num_classes, seed)
    if classes is None and preset is None:
        return default_classes(known.sampling, num_classes, class_names, seed)
    if num_classes == 0:
        raise UsageError("this network has no classes; give --num instead")
    if preset is not None:
        labels = _PRESETS[preset][0]
        if max(labels) >= num_classes:
            raise UsageError(f"--preset {preset} is for ImageNet's 1000 classes; this network has {num_classes}")
        return labels
    return parse_classes(classes or "", num_classes, class_names)


def _print_report(directory: "SampleDirectory", settings: "SampleSettings", report: "SampleReport", json: bool) -> None:
    from dcae_cli.output import print_json
    from dcae_core.pipelines.sample_directory import GRID_NAME, LATENTS_NAME

    rate = report.made / report.seconds if report.made else None
    kept = len(directory.classes) - report.made
    if json:
        document: dict[str, Any] = {
            "output": directory.path,
            "grid": directory.path / GRID_NAME,
            "images": [directory.image(index) for index in range(len(directory.classes))],
            "latents": directory.path / LATENTS_NAME if directory.save_latents else None,
            "classes": directory.classes,
            "seed": settings.seed,
            "guidance_scale": settings.guidance_scale,
            "batch_size": report.batch_size,
            "made": report.made,
            "kept": kept,
            "images_per_second": rate,
        }
        print_json(document)
        return
    speed = f", {rate:.3g} images/s" if rate else ""
    already = f" ({kept} were there already)" if kept else ""
    typer.echo(f"{len(directory.classes)} images in {directory.path}{already}{speed}; all in one: {GRID_NAME}")
