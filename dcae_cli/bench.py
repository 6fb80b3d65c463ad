"""`dcae bench`: how fast this machine does it, beside what the machine could do and beside other code."""

from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dcae_cli.options import Compile, Debug, Device, Dtype, Json, parse_compile

if TYPE_CHECKING:
    from dcae_core.benchmarking.headline import Headline
    from dcae_core.benchmarking.measuring import Machine, Measurement, ProgressNote
    from dcae_core.benchmarking.subjects import BenchSettings

_DEFAULT = ["encode", "decode", "reconstruct"]
_HEADLINE = "headline"
_COLUMNS = (
    "what",
    "of",
    "by",
    "ms",
    "spread",
    "CPU ms",
    "per s",
    "GFLOP/s",
    "of matmul",
    "limit ms",
    "held MB",
    "peak MB",
    "",
)


def bench(
    what: Annotated[
        list[str] | None,
        typer.Argument(
            help="encode, decode, reconstruct, denoise, sample, train-step, latent-reading (left out: the first "
            "three), or headline.",
            metavar="WHAT",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Zoo name or local directory; left out: the embedded autoencoder, and UViT-S on f32c32 latents.",
            metavar="MODEL",
        ),
    ] = None,
    resolution: Annotated[int, typer.Option(min=1, help="Side of the images.", metavar="PIXELS")] = 512,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Images or latents at once (default 1).", metavar="N")
    ] = None,
    repeats: Annotated[
        int | None, typer.Option(min=1, help="Timed rounds (default 5; headline on a CPU: 2).", metavar="N")
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(help="In alternation: diffusers, or plain (ours without preparation).", metavar="PEER"),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Steps of sampling; headline: timed evaluations (30; CPU: 1).", metavar="N"),
    ] = None,
    cfg: Annotated[float, typer.Option(help="Guidance scale of sampling; 1 is none.", metavar="SCALE")] = 1.0,
    plain: Annotated[bool, typer.Option("--plain", help="The plain network: no preparation, no compilation.")] = False,
    small: Annotated[bool, typer.Option("--small", help="headline: a tiny network, to try the command.")] = False,
    device: Device = "auto",
    dtype: Dtype = "fp32",
    compile: Compile = "auto",
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure this installation on this machine. Nothing is downloaded: weights that are not cached are random ones.

    ms is the median of the rounds by the clock, spread the distance of slowest from fastest, CPU ms what this process
    took of all processors, whatever else they did. GFLOP/s counts what the definition of the network multiplies. limit
    is what its operations take at this machine's rate of matrix products, or its bytes at the rate of a copy. held is
    the memory of the networks, peak what a call takes beyond that.

    \b
    Examples:
      dcae bench
      dcae bench encode decode --model dc-ae-f32c32-in-1.0 --against diffusers --against plain
      dcae bench denoise sample train-step --batch 8 --dtype bf16
      dcae bench headline
    """
    from dcae_cli.output import print_json
    from dcae_cli.progress import progress
    from dcae_core.benchmarking.bench import run_benchmarks
    from dcae_core.benchmarking.measuring import UNTIMED_ROUNDS, measure_machine
    from dcae_core.benchmarking.subjects import BenchSettings
    from dcae_core.devices import parse_dtype, select_device

    number_type, chosen = parse_dtype(dtype), select_device(device)
    whats = _require_known(what or _DEFAULT, against or [])
    is_headline = whats == [_HEADLINE]
    settings = BenchSettings(
        device=chosen,
        dtype=number_type,
        model=model,
        resolution=resolution,
        batch=batch or 1,
        repeats=repeats or (2 if is_headline and chosen.type == "cpu" else 5),
        num_steps=steps,
        guidance_scale=cfg,
        plain=plain,
        compile=parse_compile(compile),
        against=tuple(against or ()),
    )
    machine = measure_machine(chosen, number_type)
    rounds = (UNTIMED_ROUNDS + settings.repeats) * (4 if is_headline else len(whats))
    with progress("measure", total=rounds, unit="rounds") as advance:

        def note(done: int, total: int, name: str) -> None:
            advance(1, note=name)

        if is_headline:
            headline = _run_headline(settings, batch, steps, small, note)
            document, measurements = headline.as_json(machine), list(headline.measurements.values())
            notes = _headline_notes(headline, small)
        else:
            measurements, notes = run_benchmarks(whats, settings, note)
            document = {"measurements": [measurement.as_json(machine) for measurement in measurements]}
    if json:
        print_json({"machine": machine.as_json(), "notes": notes} | document)
    else:
        _print(machine, measurements, notes)


def _require_known(whats: list[str], peers: list[str]) -> list[str]:
    from dcae_core.benchmarking.bench import SUBJECTS
    from dcae_core.benchmarking.subjects import PEERS
    from dcae_core.errors import UsageError, unknown_name

    for name in whats:
        if name not in (*SUBJECTS, _HEADLINE):
            raise UsageError(f"unknown subject {name!r}; choose from {', '.join((*SUBJECTS, _HEADLINE))}")
    if _HEADLINE in whats and len(whats) > 1:
        raise UsageError("headline is measured on its own; example: dcae bench headline")
    for peer in peers:
        if peer not in PEERS:
            raise unknown_name("--against", peer, PEERS)
    return list(dict.fromkeys(whats))


def _run_headline(
    settings: "BenchSettings", batch: int | None, steps: int | None, small: bool, note: "ProgressNote"
) -> "Headline":
    from dcae_core.benchmarking.headline import EVALUATIONS, HeadlineSettings, measure_headline

    evaluations = steps or (1 if settings.device.type == "cpu" else EVALUATIONS)
    return measure_headline(HeadlineSettings(evaluations, small, batch), settings, note)


def _headline_notes(headline: "Headline", small: bool) -> list[str]:
    from dcae_core.benchmarking.headline import EVALUATIONS, PUBLISHED

    notes = ["random weights; the diffusion network alone, without guidance and decoding"]
    for what, kind in (("train", "training"), ("infer", f"inference with {EVALUATIONS} evaluations")):
        slow, fast = (headline.images_per_second(what, side) for side in ("f8", "f64"))
        notes.append(
            f"{kind}: {slow:.4g} images/s on f8 latents with patch 2, {fast:.4g} on f64 with patch 1: "
            f"{headline.ratio(what):.1f}x (paper, one H100: {PUBLISHED[what]}x)"
        )
    if headline.evaluations != EVALUATIONS:
        notes.append(f"timed {headline.evaluations} of {EVALUATIONS} evaluations")
    if small:
        notes.append("--small: the ratios of a tiny network say nothing about UViT-H")
    return notes


def _print(machine: "Machine", measurements: list["Measurement"], notes: list[str]) -> None:
    from dcae_cli.output import print_table

    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    title = (
        f"{machine.device}, {machine.threads} thread(s), {machine.dtype}; {versions}\n"
        f"matrix product {machine.matmul_flops / 1e9:,.0f} GFLOP/s, copy {machine.copy_bytes / 1e9:.1f} GB/s"
    )
    print_table(title, _COLUMNS, [_row(measurement, machine, measurements) for measurement in measurements])
    for line in notes:
        typer.echo(line)


def _row(measurement: "Measurement", machine: "Machine", measurements: list["Measurement"]) -> tuple[Any, ...]:
    flops = measurement.flops
    return (
        measurement.subject.what,
        measurement.subject.setting,
        measurement.implementation,
        _round(1e3 * measurement.median_seconds),
        f"{measurement.spread:.0%}",
        _round(1e3 * median(measurement.cpu_seconds)),
        _round(measurement.items_per_second),
        None if flops is None else _round(flops / 1e9),
        None if flops is None else f"{flops / machine.matmul_flops:.0%}",
        _round(1e3 * measurement.limit_seconds(machine)),
        None if measurement.held_bytes is None else round(measurement.held_bytes / 1e6),
        None if measurement.peak_bytes is None else round(measurement.peak_bytes / 1e6),
        _comparison(measurement, measurements),
    )


def _comparison(measurement: "Measurement", measurements: list["Measurement"]) -> str:
    """On a peer's row: how many times faster ours is, and how far the outputs are apart."""
    from dcae_core.benchmarking.measuring import advantage

    first = next(other for other in measurements if other.subject is measurement.subject)
    if measurement is first:
        return ""
    text = f"{first.implementation} is {advantage(first, over=measurement):.2f}x as fast"
    return text if measurement.difference is None else f"{text}, difference {measurement.difference:.0e}"


def _round(value: float) -> float | int:
    """Three digits that count, and all digits before the point."""
    return round(value) if value >= 100 else float(f"{value:.3g}")
