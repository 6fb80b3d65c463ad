"""`dcae recipes`: what recipes there are, what they say, and whether they are right."""

from pathlib import Path
from typing import Annotated

import typer

from dcae_cli.completion import complete_recipe
from dcae_cli.options import Debug, Json

recipes = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=False,
    help="List, show, copy and check recipes.\n\n\b\n"
    "dcae recipes list\ndcae recipes copy train_ae/tiny mine.yaml\ndcae recipes check",
)


_Name = Annotated[
    str,
    typer.Argument(help="A shipped recipe, such as train_ae/tiny.", metavar="NAME", autocompletion=complete_recipe),
]


@recipes.callback(invoke_without_command=True)
def default(context: typer.Context, as_json: Json = False, debug: Debug = False) -> None:
    """List, show, copy and check recipes; without a subcommand: list them."""
    if context.invoked_subcommand is None:
        list_recipes(as_json)


@recipes.command("list")
def list_recipes(as_json: Json = False, debug: Debug = False) -> None:
    """Name every shipped recipe and what it is for.

    \b
    dcae recipes list
    """
    from dcae_cli.output import print_json, print_table
    from dcae_core.recipes.loading import describe_recipe, shipped_recipes

    rows = [(name, _first_sentence(describe_recipe(path))) for name, path in shipped_recipes().items()]
    if as_json:
        print_json([{"name": name, "purpose": purpose} for name, purpose in rows])
    else:
        print_table("", ["recipe", "purpose"], rows)


@recipes.command()
def show(
    name: _Name,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Print a shipped recipe as it is, comments and all.

    \b
    dcae recipes show train_ae/finetune-decoder
    """
    from dcae_cli.output import print_json
    from dcae_core.recipes.loading import find_recipe

    text = find_recipe(name).read_text(encoding="utf-8")
    if as_json:
        print_json({"name": name, "text": text})
    else:
        typer.echo(text, nl=False)


@recipes.command()
def copy(
    name: _Name,
    file: Annotated[Path, typer.Argument(help="Where to; a file that is there is not replaced.", metavar="FILE")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Copy a shipped recipe, comments and all: the start of your own.

    \b
    dcae recipes copy train_ae/finetune-decoder mine.yaml
    """
    from dcae_cli.output import print_json
    from dcae_core.errors import UsageError
    from dcae_core.files import make_directory, write_bytes
    from dcae_core.recipes.loading import find_recipe

    recipe = find_recipe(name)
    if file.is_dir():
        file /= recipe.name
    if file.exists():
        raise UsageError(f"{file} is there already; give another name, or remove it first")
    make_directory(file.parent)
    write_bytes(file, recipe.read_bytes())
    if as_json:
        print_json({"name": name, "file": file})
    else:
        typer.echo(f"{file}: a copy of {name}")


@recipes.command()
def check(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Recipe files or names; left out: every shipped one.", metavar="RECIPE", autocompletion=complete_recipe
        ),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check recipes and say everything that is wrong with them.

    They are held against their schemas and networks. Whether images, weights and devices are there is checked by
    --dry-run of the recipe's own command.

    \b
    dcae recipes check
    dcae recipes check mine.yaml
    """
    from dcae_cli.output import print_json
    from dcae_core.errors import RecipeError
    from dcae_core.recipes.loading import find_recipe, load_any_recipe, shipped_recipes
    from dcae_core.training.checks import check_network

    paths = [find_recipe(name) for name in names] if names else list(shipped_recipes().values())
    faults = []
    for path in paths:
        try:
            load_any_recipe(path, check_network)
        except RecipeError as error:
            faults.append(str(error))
    if as_json:
        print_json({"recipes": len(paths), "faults": faults})
    if faults:
        raise RecipeError("\n".join(faults))
    if not as_json:
        typer.echo(f"{len(paths)} recipe{'s are' if len(paths) != 1 else ' is'} right")


@recipes.command()
def schema(
    command: Annotated[str, typer.Argument(help="Whose recipes, such as train-ae.", metavar="COMMAND")],
    debug: Debug = False,
) -> None:
    """Print the JSON schema of a command's recipes.

    Editors complete and check YAML by it.

    \b
    dcae recipes schema train-ae > train-ae.schema.json
    """
    from dcae_cli.output import print_json
    from dcae_core.recipes.loading import schema_of

    print_json(schema_of(command).model_json_schema())


def _first_sentence(text: str) -> str:
    return " ".join(text.split()).split(". ")[0].rstrip(".")
