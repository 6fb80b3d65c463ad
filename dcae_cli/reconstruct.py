"""`dcae reconstruct`: images through one or several autoencoders and back, with the numbers beside them."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dcae_cli.completion import complete_autoencoder
from dcae_cli.options import Compile, Debug, Device, Dtype, Json, Output, Revision, parse_compile
from dcae_cli.progress import note, progress, report_failure, warn

if TYPE_CHECKING:
    from dcae_core.data.sources import ImageReference
    from dcae_core.errors import DataError
    from dcae_core.pipelines.image_files import ImageResult, RunModel, RunSettings
    from dcae_core.pipelines.image_inputs import Inputs
    from dcae_core.progress import Advance, ProgressCallback

COLUMNS = ("image", "model", "size", "latent", "compression", "PSNR dB", "SSIM", "ms")


def reconstruct(
    images: Annotated[
        list[str], typer.Argument(help="Files, folders, globs, file lists (.txt), tar or parquet.", metavar="IMG")
    ],
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="Zoo name (see `dcae models`), hub id or local directory; left out: the embedded model. Several "
            "--model are set side by side.",
            metavar="MODEL",
            autocompletion=complete_autoencoder,
        ),
    ] = None,
    output: Output = Path("out"),
    resolution: Annotated[
        int | None,
        typer.Option(min=1, help="First cut the central square of this many pixels, as ADM does.", metavar="PIXELS"),
    ] = None,
    save_latents: Annotated[bool, typer.Option("--save-latents", help="Also write NAME.latent.safetensors.")] = False,
    tile: Annotated[
        int | None,
        typer.Option(min=1, help="Side of the tiles; left out: whole where memory allows.", metavar="PIXELS"),
    ] = None,
    compare: Annotated[bool, typer.Option("--compare/--no-compare", help="Write NAME.compare.png.")] = True,
    report: Annotated[
        bool, typer.Option("--report", help="Write report.html too: each input and reconstruction under a slider.")
    ] = False,
    exif: Annotated[bool, typer.Option("--exif/--no-exif", help="Turn images upright as their EXIF says.")] = True,
    max_pixels: Annotated[
        int | None, typer.Option(min=1, help="Refuse larger images (default 179 million).", metavar="N")
    ] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="The network without preparation: slower, in less memory.")
    ] = False,
    device: Device = "auto",
    dtype: Dtype = "fp32",
    compile: Compile = "auto",
    revision: Revision = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Encode images and decode them again; write the reconstructions and say how close they are.

    Writes NAME.recon.png, as large as the input, and NAME.compare.png: input | reconstruction | error. Images of the
    same name get more of their path into it. An image that cannot be read is reported, and the others are done.

    \b
    Examples:
      dcae reconstruct photo.jpg -o out
      dcae reconstruct photos/ 'more/*.png' -o out --json
      dcae reconstruct photo.jpg --model dc-ae-f32c32-in-1.0 --model dc-ae-f64c128-in-1.0
      dcae reconstruct photos/ --report -o out
      dcae reconstruct huge.tif --tile 1024 --save-latents
    """
    from dcae_core.data.images import DEFAULT_MAX_PIXELS, describe_crop
    from dcae_core.devices import parse_dtype, select_device
    from dcae_core.errors import DataError
    from dcae_core.files import make_directory
    from dcae_core.pipelines import image_files, image_inputs

    number_type, chosen, compile_mode = parse_dtype(dtype), select_device(device), parse_compile(compile)
    inputs = image_inputs.find_inputs(images, output)
    references, problems = inputs.images, inputs.problems
    if not references and len(problems) == 1:
        raise problems[0]
    for problem in problems:
        report_failure(problem)
    _say_what_was_left_out(inputs, output)
    settings = image_files.RunSettings(
        output=output,
        resolution=resolution,
        tile=tile,
        save_latents=save_latents,
        compare=compare,
        apply_exif=exif,
        max_pixels=max_pixels or DEFAULT_MAX_PIXELS,
    )
    page = None
    with progress("reconstruct", total=len(references)) as advance:
        advance(0, note="loading the weights")
        models = image_files.load_models(
            model or [None], device=chosen, dtype=number_type, revision=revision, prepare=not plain
        )
        image_files.check_settings(models, settings)
        models = image_files.make_ready(models, len(references), settings, compile_mode)
        make_directory(output)
        names = image_inputs.name_outputs(references)
        image_files.check_outputs(names, models, settings)
        results = _reconstruct_each(list(zip(references, names, strict=True)), models, settings, problems, advance)
        if report and results:
            from dcae_core.pipelines.image_page import write_image_page

            advance(0, note="report.html")
            page = write_image_page({one.name: one for one in references}, results, settings, describe_crop(resolution))
    _show(results, problems, settings, page, json)
    if problems:
        raise DataError(f"{len(problems)} of the inputs failed, as reported above; the others are done")


def _reconstruct_each(
    images: Sequence[tuple["ImageReference", str]],
    models: Sequence["RunModel"],
    settings: "RunSettings",
    problems: list["DataError"],
    advance: "Advance",
) -> list["ImageResult"]:
    """One image after another; one that cannot be read joins the problems, unless it is all there is."""
    from dcae_core.errors import CheckpointError, DataError
    from dcae_core.pipelines.image_files import reconstruct_file

    results: list[ImageResult] = []
    for reference, name in images:
        advance(0, note=name)
        try:
            notes = _tile_notes(advance, models)
            results += reconstruct_file(reference, name, models, settings, notes, time_again=not results)
        except CheckpointError:
            raise  # the weights are at fault, not the image
        except DataError as error:
            if len(images) == 1 and not problems:
                raise
            problems.append(error)
            report_failure(error)
        advance(1)
    return results


def _say_what_was_left_out(inputs: "Inputs", output: Path) -> None:
    from dcae_core.data.sources import describe_unread

    if inputs.own_results:
        text = f"left out {inputs.own_results} results of earlier runs (.recon.png, .compare.png, or in {output})"
        note(text)
    for line in describe_unread(inputs.unread):
        warn(line)


def _tile_notes(advance: "Advance", models: Sequence["RunModel"]) -> Callable[["RunModel"], "ProgressCallback"]:
    """Beside the bar: which model is at which tile of the image that is being worked on."""

    def for_model(model: "RunModel") -> "ProgressCallback":
        before = models.index(model)
        tiles = 0

        def note(done: int, total: int) -> None:
            nonlocal tiles
            tiles += 1  # of encoding, then of decoding
            step = "encoding" if tiles <= total else "decoding"
            which = f" tile {done}/{total}" if total > 1 else ""
            part = (before + tiles / (2 * total)) / len(models)
            advance(0, note=f"{model.label}: {step}{which}", part=min(part, 0.999))

        return note

    return for_model


def _show(
    results: list["ImageResult"], problems: list["DataError"], settings: "RunSettings", page: Path | None, json: bool
) -> None:
    from dcae_cli.output import print_json, print_table
    from dcae_core.data.images import describe_crop, describe_enlarged
    from dcae_core.pipelines.image_files import mean_results

    warnings = []
    enlarged = {result.image for result in results if result.enlarged}
    if enlarged and settings.resolution is not None:
        total = len({result.image for result in results})
        warnings.append(describe_enlarged(len(enlarged), total, settings.resolution))
    for line in warnings:
        warn(line)
    crop = describe_crop(settings.resolution)
    if json:
        failed = [str(error) for error in problems]
        print_json(
            {
                "results": [one.as_json() for one in results],
                "means": [mean.as_json() for mean in mean_results(results)],
                "failed": failed,
                "crop": crop,
                "report": page,
                "warnings": warnings,
            }
        )
    elif results:
        print_table("", COLUMNS, [*map(_row, results), *_mean_rows(results)])
        typer.echo(f"images: {crop}")
        typer.echo(f"written to {settings.output}" + (f"; look at {page}" if page else ""))


def _row(result: "ImageResult") -> tuple[object, ...]:
    return (
        result.image,
        result.model,
        f"{result.width} x {result.height}",
        " x ".join(map(str, result.latent_shape)),
        f"{result.compression:.0f}x",
        f"{result.psnr:.2f}",
        None if result.ssim is None else f"{result.ssim:.4f}",
        round(result.milliseconds),
    )


def _mean_rows(results: list["ImageResult"]) -> Iterator[tuple[object, ...]]:
    """For several images one row for each model: the mean of the figures, as evaluations report it."""
    from dcae_core.pipelines.image_files import mean_results

    for mean in mean_results(results):
        if mean.num_images > 1:
            ssim = None if mean.ssim is None else f"{mean.ssim:.4f}"
            figures = (f"{mean.psnr:.2f}", ssim, round(mean.milliseconds))
            yield (f"mean of {mean.num_images}", mean.model, "", "", "", *figures)
