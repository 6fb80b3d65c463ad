"""Options that mean the same in every command, declared once."""

from typing import Annotated

import typer

Device = Annotated[str, typer.Option(help="Where to compute: auto, cpu, cuda, cuda:N or mps.", metavar="NAME")]
Dtype = Annotated[str, typer.Option(help="Number type of the networks: fp32, bf16 or fp16.", metavar="TYPE")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document for machines instead of tables.")]
Model = Annotated[
    str | None,
    typer.Option(
        help="Zoo name (see `dcae models`), hub id or local directory; left out: the embedded model.", metavar="MODEL"
    ),
]
Revision = Annotated[
    str | None,
    typer.Option(help="Branch, tag or commit of the hub repository; left out: its main branch.", metavar="REV"),
]
NumProcesses = Annotated[
    int, typer.Option("--nproc", min=1, help="Processes to start on this machine, as torchrun would.", metavar="N")
]
# Read by `dcae_cli.__main__` before anything else, so that it works in front of the command too; a command takes it
# only for its --help to name it.
Debug = Annotated[bool, typer.Option("--debug", help="Show a traceback when something fails.")]
