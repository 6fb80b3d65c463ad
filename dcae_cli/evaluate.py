"""`dcae eval`: measure an autoencoder, a diffusion model or a folder of images by the published protocols."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dcae_cli.completion import complete_own_recipe, complete_sampler
from dcae_cli.options import (
    Alpha,
    Autoguidance,
    ComputingCompile,
    Debug,
    Device,
    GuidanceInterval,
    Json,
    Model,
    NumProcesses,
    Overrides,
    Resize,
    Tf32,
    Work,
    parse_interval,
    parse_scales,
)
from dcae_cli.processes import start_processes

if TYPE_CHECKING:
    from dcae_core.pipelines.evaluation.scores import Evaluation
    from dcae_core.recipes.evaluate import EvaluateRecipe

_NUM_SHOWN = 3  # in the report: of the best, the middle and the worst each


def evaluate(
    recipe: Annotated[
        str | None,
        typer.Argument(
            help="A recipe file, or the name of a shipped recipe (see `dcae recipes`).",
            metavar="RECIPE",
            autocompletion=complete_own_recipe,
        ),
    ] = None,
    overrides: Overrides = None,
    model: Model = None,
    images: Annotated[
        str | None,
        typer.Option(
            help="Images for an autoencoder: folder, glob, list, tar or parquet; left out: the sample pack.",
            metavar="PATH",
        ),
    ] = None,
    generated: Annotated[str | None, typer.Option(help="Measure these images, of any origin.", metavar="PATH")] = None,
    psnr: Annotated[bool, typer.Option("--psnr", help="Measure PSNR.")] = False,
    ssim: Annotated[bool, typer.Option("--ssim", help="Measure SSIM.")] = False,
    lpips: Annotated[bool, typer.Option("--lpips", help="Measure LPIPS (AlexNet).")] = False,
    fid: Annotated[bool, typer.Option("--fid", help="Measure FID (rFID for an autoencoder).")] = False,
    sfid: Annotated[bool, typer.Option("--sfid", help="Measure sFID: spatial features, as ADM's files hold.")] = False,
    is_: Annotated[bool, typer.Option("--is", help="Measure the Inception Score.")] = False,
    precision_recall: Annotated[
        bool, typer.Option("--precision-recall", help="Measure precision and recall (k = 3).")
    ] = False,
    kid: Annotated[bool, typer.Option("--kid", help="Measure KID.")] = False,
    fd_dinov2: Annotated[
        bool, typer.Option("--fd-dinov2", help="Measure the Fréchet distance on DINOv2's features.")
    ] = False,
    cmmd: Annotated[bool, typer.Option("--cmmd", help="Measure CMMD, on CLIP's embeddings.")] = False,
    frechet: Annotated[
        bool, typer.Option("--frechet", help="Measure a Fréchet distance that needs no download; not an FID.")
    ] = False,
    ref: Annotated[
        str | None,
        typer.Option(
            help="Statistics (dcae fid-ref, published, ADM) or images to compare with; left out: the originals.",
            metavar="FILE|PATH",
        ),
    ] = None,
    resolution: Annotated[
        int | None, typer.Option(min=1, help="Cut images to squares of this side (default 512).", metavar="N")
    ] = None,
    num: Annotated[
        int | None, typer.Option(min=1, help="How many samples (default 50000), or images (all).", metavar="N")
    ] = None,
    cfg: Annotated[
        str | None,
        typer.Option(help="Guidance scale of a diffusion model, or several, as 1.0,1.2,1.5.", metavar="SCALE[,...]"),
    ] = None,
    cfg_interval: GuidanceInterval = None,
    autoguidance: Autoguidance = None,
    sampler: Annotated[
        str | None, typer.Option(help="Left out: the published one.", metavar="NAME", autocompletion=complete_sampler)
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Left out: the sampler's default.", metavar="N")] = None,
    seed: Annotated[int | None, typer.Option(help="Of noise and labels (default 0).", metavar="N")] = None,
    inception_weights: Annotated[
        str | None,
        typer.Option(help="A file with the published names and shapes, instead of the download.", metavar="FILE"),
    ] = None,
    dinov2: Annotated[
        str | None, typer.Option(help="Hub id or directory of another DINOv2 than the large one.", metavar="MODEL")
    ] = None,
    clip: Annotated[
        str | None, typer.Option(help="Hub id or directory of another CLIP than ViT-L/14 at 336.", metavar="MODEL")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images at a time (default 8).", metavar="N")] = None,
    damaged: Annotated[
        str | None, typer.Option(help="Damaged images: skip (and list them) or fail.", metavar="POLICY")
    ] = None,
    alpha: Alpha = None,
    resize: Resize = None,
    tf32: Tf32 = None,
    compile: ComputingCompile = None,
    report: Annotated[Path | None, typer.Option(help="Write a page to look at here.", metavar="DIR")] = None,
    work: Work = None,
    nproc: NumProcesses = 1,
    device: Device = "auto",
    dtype: Annotated[
        str | None, typer.Option(help="Number type of the network: fp32 (default), bf16 or fp16.", metavar="TYPE")
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure an autoencoder, a diffusion model, or images from anywhere.

    Stop it at any moment; the same command goes on where it was and ends with the same number. Without a metric: PSNR
    and SSIM of an autoencoder, FID of generated images. Without anything: the embedded model on the sample pack.

    \b
    dcae eval --images photos --resolution 512 --psnr --ssim --report report
    dcae eval autoencoder-f64c128-in --images imagenet/val --ref imagenet_512_val.npz --nproc 8
    dcae eval --model dc-ae-f32c32-in-1.0-usit-h-in-512px --cfg 1.0,1.2 --fid --is --ref imagenet_512_train.npz
    dcae eval --generated samples --fid --ref imagenet_512_train.npz
    dcae eval --generated samples --frechet --ref photos
    """
    start_processes(nproc)

    import sys

    from dcae_cli.progress import note, progress
    from dcae_core.devices import select_device
    from dcae_core.distributed import process_group
    from dcae_core.files import prove_writable
    from dcae_core.pipelines.evaluation import evaluate as pipeline
    from dcae_core.pipelines.evaluation.report import REPORT_NAME, write_report

    wanted = {"psnr": psnr, "ssim": ssim, "lpips": lpips, "fid": fid, "sfid": sfid, "is": is_}
    wanted |= {"precision_recall": precision_recall, "kid": kid, "fd_dinov2": fd_dinov2, "cmmd": cmmd}
    wanted |= {"frechet": frechet}
    changes: dict[str, Any] = {
        "metrics": [name for name, asked in wanted.items() if asked],
        "images": images,
        "generated": generated,
        "reference": ref,
        "resolution": resolution,
        "inception_weights": inception_weights,
        "dinov2": dinov2,
        "clip": clip,
        "batch_size": batch_size,
        "damaged": damaged,
        "alpha": alpha,
        "resize": resize,
        "execution": {name: value for name, value in {"tf32": tf32, "compile": compile}.items() if value is not None},
    }
    interval = parse_interval(cfg_interval)
    sampling = {
        "num": num,
        "guidance_scale": parse_scales(cfg),
        "guidance_interval": interval and list(interval),
        "autoguidance": autoguidance,
        "sampler": sampler,
        "num_steps": steps,
        "seed": seed,
    }
    settings = _settings(recipe, overrides or [], changes, {"model": model, "dtype": dtype}, sampling)
    compute = select_device(device)
    page = report / REPORT_NAME if report is not None else None
    if page is not None:
        prove_writable(page)  # before hours of work, not after

    def publish(evaluations: "list[Evaluation]") -> None:
        if len(evaluations) == 1:
            _show(evaluations[0], settings, page, json)
        else:
            _show_scales(evaluations, json)
        sys.stdout.flush()
        if report is not None:
            note(f"the report is {write_report(report, evaluations, settings.expected)}")

    with process_group(compute), _saying_that_it_goes_on():
        pipeline.evaluate(
            settings,
            device=compute,
            work=work,
            num_shown=_NUM_SHOWN if report else 0,
            progress=lambda description, total: progress(description, total=total, unit="images"),
            note=note,
            publish=publish,
        )


def _settings(
    recipe: str | None, overrides: list[str], changes: dict[str, Any], network: dict[str, Any], sampling: dict[str, Any]
) -> "EvaluateRecipe":
    """The recipe that was named, or an empty one, with the options put over it."""
    from dcae_core.recipes.evaluate import EvaluateRecipe
    from dcae_core.recipes.loading import load_recipe

    named = load_recipe(recipe, EvaluateRecipe, overrides) if recipe is not None else None
    changes = {name: value for name, value in changes.items() if value not in (None, [], {})}
    network = {name: value for name, value in network.items() if value is not None}
    sampling = {name: value for name, value in sampling.items() if value is not None}
    options = _choose_subject(named, changes, network, sampling)
    settings = load_recipe(recipe, EvaluateRecipe, overrides, options=options | changes)
    if recipe is not None:
        _require_images(recipe, settings)
    return settings


def _require_images(recipe: str, settings: "EvaluateRecipe") -> None:
    """A shipped recipe can only guess where a user's images are."""
    from dcae_core.errors import DataError

    images = settings.images
    if settings.autoencoder is not None and images is not None and not (Path(images).exists() or "*" in images):
        raise DataError(f"{recipe} measures the images in {images}, which is not here: give --images DIR")


def _choose_subject(
    recipe: "EvaluateRecipe | None", changes: dict[str, Any], network: dict[str, Any], sampling: dict[str, Any]
) -> dict[str, Any]:
    """Decide what is measured: where in the recipe the options about it belong, and what they are.

    Raises:
        UsageError: options for sampling, and nothing that samples.
    """
    from dcae_core.checkpoints.denoisers import is_diffusion_model
    from dcae_core.errors import UsageError

    of_samplers = set(sampling) - {"num"}
    if of_samplers and ("generated" in changes or (recipe is not None and recipe.autoencoder is not None)):
        raise UsageError(
            "--cfg, --cfg-interval, --autoguidance, --sampler, --steps and --seed belong to a diffusion model; "
            "name one with --model"
        )
    options: dict[str, Any] = {}
    if "generated" in changes:
        options = {"autoencoder": None, "diffusion": None, "resolution": None}
        return options if recipe is not None else {"metrics": ["fid"]} | options
    has_subject = recipe is not None and (recipe.diffusion is not None or recipe.autoencoder is not None)
    if recipe is not None and has_subject:
        is_diffusion = recipe.diffusion is not None
    else:
        is_diffusion = is_diffusion_model(network.get("model")) or bool(of_samplers)
        options["diffusion" if is_diffusion else "autoencoder"] = {}
    if recipe is None:
        options["metrics"] = ["fid"] if is_diffusion else ["psnr", "ssim"]
    if is_diffusion:
        return options | {f"diffusion.{name}": value for name, value in (network | sampling).items()}
    if "num" in sampling:
        options["num_images"] = sampling["num"]
    return options | {f"autoencoder.{name}": value for name, value in network.items()}


@contextmanager
def _saying_that_it_goes_on() -> Iterator[None]:
    """Say that nothing is lost where an evaluation is stopped."""
    import sys

    from dcae_core.distributed import is_main

    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        if is_main():
            print("finished parts are kept, the same command goes on from there", file=sys.stderr)
        raise


def _show(evaluation: "Evaluation", settings: "EvaluateRecipe", page: Path | None, json: bool) -> None:
    from dcae_cli.output import print_json, print_table
    from dcae_core.pipelines.evaluation.scores import compare_with_expected

    comparisons = compare_with_expected(evaluation, settings.expected)
    _warn_of([evaluation])
    if json:
        expected = {row.name: row.to_dict() for row in comparisons if row.expected is not None}
        print_json(evaluation.to_dict() | {"expected": expected, "report": page})
        return
    columns = ["", "measured", "spread", "images"]
    rows = [[row.label, row.measured_text, row.spread_text, row.num_images] for row in comparisons]
    if settings.expected:
        columns += ["expected", "verdict"]
        rows = [[*cells, row.expected_text, row.verdict] for cells, row in zip(rows, comparisons, strict=True)]
    print(f"{evaluation.subject}, {evaluation.num_images} images")
    print_table("", columns, rows)
    for line in evaluation.origins():
        print(line)


def _show_scales(evaluations: "list[Evaluation]", json: bool) -> None:
    """A row, or a record, for each guidance scale."""
    from dcae_cli.output import print_json, print_table
    from dcae_core.pipelines.evaluation.scores import compare_with_expected

    _warn_of(evaluations)
    if json:
        print_json([evaluation.to_dict() for evaluation in evaluations])
        return
    first, figures = evaluations[0], [compare_with_expected(evaluation, {}) for evaluation in evaluations]
    print(f"{first.subject}, {first.num_images} images at each of {len(evaluations)} guidance scales")
    print_table(
        "",
        ["guidance", *(figure.label for figure in figures[0])],
        [
            [f"{evaluation.guidance_scale:g}", *(f"{each.measured_text} {each.spread_text}".rstrip() for each in row)]
            for evaluation, row in zip(evaluations, figures, strict=True)
        ],
    )
    for line in first.origins():
        print(line)


def _warn_of(evaluations: "list[Evaluation]") -> None:
    from dcae_cli.progress import warn

    damaged = evaluations[0].damaged
    for line in dict.fromkeys([*damaged[:5], *(line for each in evaluations for line in each.warnings)]):
        warn(line)
    if len(damaged) > 5:
        warn(f"{len(damaged)} damaged images in all")
