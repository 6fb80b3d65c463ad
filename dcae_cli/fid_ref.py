"""`dcae fid-ref`: the statistics that FID compares with, from images to one small file."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dcae_cli.options import Alpha, Debug, Device, Dtype, Json, NumProcesses, Resize, Tf32, Work
from dcae_cli.processes import start_processes

if TYPE_CHECKING:
    from dcae_core.pipelines.evaluation.fid_reference import FidReference


def fid_ref(
    images: Annotated[
        list[str], typer.Option(help="Folder, glob, list, tar or parquet. May be repeated.", metavar="PATH")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The .npz file to write.", metavar="FILE")],
    resolution: Annotated[
        int | None,
        typer.Option(min=1, help="ADM centre crop of this side; left out: as the files are.", metavar="N"),
    ] = None,
    inception_weights: Annotated[
        Path | None,
        typer.Option(help="A file with the published names and shapes, instead of the download.", metavar="FILE"),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time.", metavar="N")] = 16,
    damaged: Annotated[
        str, typer.Option(help="Damaged images: skip (and list them) or fail.", metavar="POLICY")
    ] = "skip",
    alpha: Alpha = None,
    resize: Resize = None,
    tf32: Tf32 = None,
    work: Work = None,
    nproc: NumProcesses = 1,
    device: Device = "auto",
    dtype: Dtype = "fp32",
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure the Inception statistics of a set of images, once, for `dcae eval --ref`.

    The file holds `mu` and `sigma` as the published code reads them, and says how they were made.

    \b
    dcae fid-ref --images imagenet/val --resolution 512 --out imagenet_512_val.npz
    dcae fid-ref --images 'shards/*.tar' --resolution 256 --out mine.npz --nproc 8
    """
    start_processes(nproc)

    import sys

    from dcae_cli.output import print_json, print_table
    from dcae_cli.progress import progress, warn
    from dcae_core.devices import allow_tf32, parse_dtype, select_device
    from dcae_core.distributed import process_group
    from dcae_core.errors import UsageError
    from dcae_core.files import prove_writable, sha256_of_file
    from dcae_core.metrics.inception import RESIZE_RULES
    from dcae_core.metrics.reference import write_reference
    from dcae_core.pipelines.evaluation.fid_reference import measure_reference

    if damaged not in ("skip", "fail"):
        raise UsageError(f"--damaged is skip or fail, not {damaged!r}")
    if alpha not in (None, "white", "drop"):
        raise UsageError(f"--alpha is white or drop, not {alpha!r}")
    if resize not in (None, *RESIZE_RULES):
        raise UsageError(f"--resize is {' or '.join(RESIZE_RULES)}, not {resize!r}")
    if parse_dtype(dtype) is not parse_dtype("fp32"):
        raise UsageError(f"--dtype {dtype}: the protocol measures features in float32; leave --dtype out")
    if out.suffix != ".npz":
        raise UsageError(f"--out {out}: a reference file ends in .npz, such as {out}.npz")
    prove_writable(out)
    compute = select_device(device)

    def publish(reference: "FidReference") -> None:
        write_reference(out, reference.gaussian, reference.description)
        for line in reference.warnings:
            warn(line)
        facts = {"file": str(out), "sha256": sha256_of_file(out)} | reference.description
        if json:
            print_json(facts)
        else:
            print_table("", ["reference", ""], [[name, str(value)] for name, value in facts.items()])
        sys.stdout.flush()

    with process_group(compute), allow_tf32(tf32):
        measure_reference(
            images,
            resolution,
            inception_weights=inception_weights,
            batch_size=batch_size,
            skip_damaged=damaged == "skip",
            alpha="drop" if alpha == "drop" else "white",
            resize="tensorflow" if resize == "tensorflow" else "half_pixel",
            device=compute,
            work=work,
            progress=lambda description, total: progress(description, total=total, unit="images"),
            publish=publish,
        )
