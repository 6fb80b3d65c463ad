"""`dcae push`: a model, with a card that explains it, to the Hugging Face hub."""

from pathlib import Path
from typing import Annotated

import typer

from dcae_cli.options import Debug, Json


def push(
    source: Annotated[
        Path,
        typer.Argument(
            help="Directory of an autoencoder or a diffusion model, or of a training of one.", metavar="RUN_OR_DIR"
        ),
    ],
    repository: Annotated[
        str, typer.Argument(help="Where to on the hub; made if it is not there.", metavar="ORG/NAME")
    ],
    licence: Annotated[
        str | None,
        typer.Option(
            "--license", help="As the hub calls it, such as apache-2.0; left out: none is named.", metavar="ID"
        ),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="For its owners' eyes only.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write the card into RUN_OR_DIR, list what would go; ask no network.")
    ] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Send a model to the Hugging Face hub: averaged weights, their description, a grid of images and a card.

    Optimisers, logs and data stay here. The card is README.md; once you have changed it and removed the line in it that
    says so, it goes as it is. It takes a login: `hf auth login`, or HF_TOKEN.

    \b
    dcae push runs/mine me/my-autoencoder --dry-run
    dcae push runs/mine me/my-autoencoder --license cc-by-4.0 --private
    """
    import tempfile
    from shutil import copyfile

    from dcae_cli.output import print_json, print_table
    from dcae_cli.progress import note, progress
    from dcae_core.checkpoints import hub
    from dcae_core.files import explain_write_errors
    from dcae_core.pipelines.publishing import CARD_NAME, is_written_by_hand, stage

    hub.require_repository_name(repository)
    if is_written_by_hand(source / CARD_NAME):
        note(f"{source / CARD_NAME} is yours and goes as it is{'; --license changes nothing in it' if licence else ''}")
    if not dry_run:
        hub.require_login()
    address, card = None, source / CARD_NAME
    with tempfile.TemporaryDirectory() as temporary:
        staged = Path(temporary) / "model"
        with progress("collecting what belongs to the model", total=0):
            stage(source, repository, staged, licence)
        files = {
            path.relative_to(staged).as_posix(): path.stat().st_size
            for path in sorted(staged.rglob("*"))
            if path.is_file()
        }
        if not dry_run:
            with progress(f"sending {sum(files.values()) / 1e6:,.1f} MB to {repository}", total=0):
                address = hub.upload(staged, repository, private=private)
        elif not is_written_by_hand(card):
            with explain_write_errors(card):
                copyfile(staged / CARD_NAME, card)
    if json:
        facts = {"repository": repository, "address": address, "files": files, "card": str(card) if dry_run else None}
        print_json(facts)
        return
    print_table("", ["file", "bytes"], list(files.items()))
    if dry_run:
        note(f"the card is {card}; without --dry-run these files go to {repository}")
    else:
        print(address)
