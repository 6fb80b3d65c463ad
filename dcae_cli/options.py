"""Options that mean the same in every command, declared once."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from dcae_cli.completion import complete_diffusion_model, complete_model, complete_own_recipe

if TYPE_CHECKING:
    from dcae_core.models.compilation import CompileMode

Device = Annotated[str, typer.Option(help="Where to compute: auto, cpu, cuda, cuda:N or mps.", metavar="NAME")]
Dtype = Annotated[str, typer.Option(help="Number type of the networks: fp32, bf16 or fp16.", metavar="TYPE")]
ComputingDtype = Annotated[
    str | None,
    typer.Option(help="Number type to compute in: fp32, bf16 or fp16; left out: the recipe's.", metavar="TYPE"),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document for machines instead of tables.")]
Model = Annotated[
    str | None,
    typer.Option(
        help="Zoo name (see `dcae models`), hub id, local directory or run of a training; left out: the embedded.",
        metavar="MODEL",
        autocompletion=complete_model,
    ),
]
Revision = Annotated[
    str | None,
    typer.Option(help="Branch, tag or commit of the hub repository; left out: its main branch.", metavar="REV"),
]
Recipe = Annotated[
    str,
    typer.Argument(
        help="A recipe file, or the name of a shipped recipe (see `dcae recipes`).",
        metavar="RECIPE",
        autocompletion=complete_own_recipe,
    ),
]
Pairs = Annotated[
    list[str] | None, typer.Argument(help="Settings of the recipe to change, as with --set.", metavar="KEY=VALUE")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="Change one setting of the recipe, dots between its keys. May be repeated.", metavar="KEY=VALUE"
    ),
]
Resume = Annotated[
    str, typer.Option(help="auto: go on with what the run directory holds; never; or a checkpoint.", metavar="MODE")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check everything, count, look at the data, do one step; write nothing.")
]
Output = Annotated[Path, typer.Option("--output", "-o", help="Directory to write.", metavar="DIR")]
Work = Annotated[
    Path | None, typer.Option(help="Where finished parts are kept until the end (default: cache).", metavar="DIR")
]
NumProcesses = Annotated[
    int, typer.Option("--nproc", min=1, help="Processes to start on this machine, as torchrun would.", metavar="N")
]
Alpha = Annotated[
    str | None,
    typer.Option(help="Transparent images: white (composed on white) or drop (as published) [white].", metavar="RULE"),
]
GuidanceInterval = Annotated[
    str | None,
    typer.Option(
        help="Guide only where the way from data (0) to noise (1) lies in here, such as 0.2:0.8; cheaper elsewhere.",
        metavar="LOW:HIGH",
    ),
]
Autoguidance = Annotated[
    str | None,
    typer.Option(
        help="Guide away from this weaker model of the same task, instead of from no class.",
        metavar="MODEL",
        autocompletion=complete_diffusion_model,
    ),
]
Resize = Annotated[
    str | None,
    typer.Option(
        help="How images become Inception's input: half_pixel (as published) or tensorflow (ADM) [the reference's, "
        "else half_pixel].",
        metavar="RULE",
    ),
]
Tf32 = Annotated[
    bool | None,
    typer.Option("--tf32/--no-tf32", help="TF32 in float32 products and convolutions on NVIDIA GPUs [PyTorch's]."),
]
Compile = Annotated[
    str,
    typer.Option(
        help="Run networks compiled: auto (on CUDA, where the run is long enough to gain), always or never.",
        metavar="MODE",
    ),
]
ComputingCompile = Annotated[
    str | None,
    typer.Option(help="Run networks compiled: auto, always or never; left out: the recipe's.", metavar="MODE"),
]
# Read by `dcae_cli.__main__` before anything else, so that it works in front of the command too; a command takes it
# only for its --help to name it.
Debug = Annotated[bool, typer.Option("--debug", help="Show a traceback when something fails.")]


def parse_compile(text: str) -> "CompileMode":
    """One of the ways to say whether networks run compiled; UsageError where it is none."""
    from dcae_core.errors import unknown_name
    from dcae_core.models.compilation import COMPILE_MODES

    if text not in COMPILE_MODES:
        raise unknown_name("--compile", text, COMPILE_MODES)
    return cast("CompileMode", text)


def parse_scales(text: str | None) -> float | list[float] | None:
    """A number, or several with commas between; UsageError where it is something else."""
    if text is None:
        return None
    from dcae_core.errors import UsageError

    try:
        scales = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(f"--cfg is a number, or several such as 1.0,1.2,1.5, not {text!r}") from error
    return scales[0] if len(scales) == 1 else scales


def parse_interval(text: str | None) -> tuple[float, float] | None:
    """LOW:HIGH as two numbers; UsageError where it is something else."""
    if text is None:
        return None
    from dcae_core.errors import UsageError

    try:
        low, high = map(float, text.split(":"))
    except ValueError as error:
        raise UsageError(f"--cfg-interval is LOW:HIGH, such as 0.2:0.8, not {text!r}") from error
    return low, high
