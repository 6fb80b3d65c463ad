"""`dcae models`: what the zoo offers, and filling the cache of a machine that will be offline."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dcae_cli.completion import complete_model
from dcae_cli.options import Debug, Json, Revision

if TYPE_CHECKING:
    from dcae_core.zoo import AutoencoderEntry, DenoiserEntry

models = typer.Typer(add_completion=False, rich_markup_mode=None)

_Pattern = Annotated[str, typer.Argument(help="Shell pattern of names, in quotes: 'dc-ae-f32*'.", show_default=False)]


@models.callback(invoke_without_command=True)
def list_by_default(context: typer.Context, json: Json = False, debug: Debug = False) -> None:
    """List the zoo, or download from it.

    \b
    Examples:
      dcae models
      dcae models list 'dc-ae-f32*' --json
      dcae models download dc-ae-f32c32-in-1.0
    """
    if context.invoked_subcommand is None:
        list_zoo("*", json)


@models.command("list", short_help="List models, their size, cost, licence and whether they are on this disk.")
def list_zoo(pattern: _Pattern = "*", json: Json = False, debug: Debug = False) -> None:
    """List models with f, channels, parameters, GMACs, scaling factor, licence, and whether they are on this disk.

    GMACs are multiply-accumulates of convolutions and matrix products: for an autoencoder those of one image of
    512 x 512 pixels, encoding + decoding; for a diffusion model those of one evaluation.

    \b
    Examples:
      dcae models list
      dcae models list '*sana*'
    """
    from dcae_cli.output import print_json, print_table
    from dcae_core.errors import UsageError
    from dcae_core.zoo import CHANNEL_VARIANTS, DENOISERS, list_models

    names = list_models(pattern)
    if not names:
        raise UsageError(f"no model matches {pattern!r}; `dcae models` lists all of them")
    # Leading channels stand in the row of the whole model, if that is listed.
    names = [name for name in names if name not in CHANNEL_VARIANTS or CHANNEL_VARIANTS[name].whole not in names]
    autoencoders = [_describe_autoencoder(name) for name in names if name not in DENOISERS]
    denoisers = [_describe_denoiser(name) for name in names if name in DENOISERS]
    if json:
        print_json(autoencoders + denoisers)
        return
    if autoencoders:
        columns = ("autoencoder", "f", "channels", "parameters M", "GMACs", "scaling factor", "licence", "on disk")
        print_table("", columns, (_autoencoder_row(facts) for facts in autoencoders))
    if autoencoders and denoisers:
        typer.echo()
    if denoisers:
        denoiser_columns = ("diffusion model", "latent", "predicts", "parameters M", "GMACs", "licence", "on disk")
        print_table("", denoiser_columns, (_denoiser_row(facts) for facts in denoisers))


@models.command(short_help="Download models into the cache.")
def download(
    names: Annotated[
        list[str], typer.Argument(help="Zoo names or hub ids.", metavar="NAME", autocompletion=complete_model)
    ],
    revision: Revision = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Download models into the cache, for a machine that will be offline.

    What is already there is not fetched again, and an interrupted download goes on where it stopped.

    \b
    Examples:
      dcae models download dc-ae-f32c32-in-1.0
      dcae models download dc-ae-f64c128-in-1.0 dc-ae-f32c32-sana-1.1
    """
    from dcae_cli.output import print_json
    from dcae_core.checkpoints.autoencoders import locate_autoencoder, not_found
    from dcae_core.checkpoints.denoisers import is_diffusion_model, locate_diffusion
    from dcae_core.checkpoints.hub import is_hub_id
    from dcae_core.zoo import AUTOENCODERS, DENOISERS, find_autoencoder, find_denoiser

    places = {}
    for name in names:
        is_known = find_autoencoder(name) is not None or find_denoiser(name) is not None
        if not (is_known or is_hub_id(name) or Path(name).exists()):
            raise not_found(name, [*AUTOENCODERS, *DENOISERS])
        locate = locate_diffusion if is_diffusion_model(name) else locate_autoencoder
        places[name] = str(locate(name, revision).where)
        if not json:
            typer.echo(f"{name}: {places[name]}")
    if json:
        print_json([{"name": name, "directory": place} for name, place in places.items()])


def _describe_autoencoder(name: str) -> dict[str, Any]:
    from dcae_core.zoo import AUTOENCODERS, CHANNEL_VARIANTS

    entry = AUTOENCODERS.get(name) or CHANNEL_VARIANTS[name]
    encoder, decoder = entry.costs
    return {
        "name": name,
        "kind": "autoencoder",
        "spatial_compression_ratio": entry.config.spatial_compression_ratio,
        "latent_channels": entry.config.latent_channels,
        "leading_channels": [v.config.latent_channels for v in CHANNEL_VARIANTS.values() if v.whole == name],
        "encoder_parameters": encoder.num_parameters,
        "decoder_parameters": decoder.num_parameters,
        "encoder_macs": encoder.macs,
        "decoder_macs": decoder.macs,
        "scaling_factor": entry.scaling_factor,
        "licence": entry.licence,
        "on_disk": _where_on_disk(entry),
    }


def _where_on_disk(entry: "AutoencoderEntry | DenoiserEntry") -> str:
    from dcae_core.checkpoints.hub import is_release_cached
    from dcae_core.zoo import embedded_directory

    if embedded_directory(entry.name).is_dir():
        return "in the package"
    return "cached" if is_release_cached(entry) else "no"


def _show_channels(channels: int, leading: list[int]) -> str:
    return f"{channels} (-c{leading[0]} ... -c{leading[-1]})" if leading else str(channels)


def _autoencoder_row(facts: dict[str, Any]) -> tuple[object, ...]:
    return (
        facts["name"],
        facts["spatial_compression_ratio"],
        _show_channels(facts["latent_channels"], facts["leading_channels"]),
        f"{facts['encoder_parameters'] / 1e6:.2f} + {facts['decoder_parameters'] / 1e6:.2f}",
        f"{facts['encoder_macs'] / 1e9:.1f} + {facts['decoder_macs'] / 1e9:.1f}",
        None if facts["scaling_factor"] is None else float(f"{facts['scaling_factor']:.5g}"),
        facts["licence"],
        facts["on_disk"],
    )


def _describe_denoiser(name: str) -> dict[str, Any]:
    from dcae_core.zoo import DENOISERS

    entry = DENOISERS[name]
    return {
        "name": name,
        "kind": "diffusion",
        "autoencoder": entry.autoencoder,
        "latent_shape": [entry.config.in_channels, *entry.config.latent_size],
        "prediction": entry.prediction,
        "parameters": entry.cost.num_parameters,
        "macs": entry.cost.macs,
        "licence": entry.licence,
        "on_disk": _where_on_disk(entry),
    }


def _denoiser_row(facts: dict[str, Any]) -> tuple[object, ...]:
    return (
        facts["name"],
        "x".join(map(str, facts["latent_shape"])),
        facts["prediction"],
        f"{facts['parameters'] / 1e6:.2f}",
        f"{facts['macs'] / 1e9:.2f}",
        facts["licence"],
        facts["on_disk"],
    )
