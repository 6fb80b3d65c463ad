"""`dcae models`: the list, and filling a cache."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dcae_core.zoo import AUTOENCODERS, DENOISERS, EMBEDDED_AUTOENCODER, EMBEDDED_DENOISER


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    """An empty download cache and no way to a network."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


def put_into_cache(cache, repository: str, *files: str) -> None:
    directory = cache / f"models--{repository.replace('/', '--')}"
    (directory / "refs").mkdir(parents=True)
    (directory / "refs" / "main").write_text("c0ffee")
    (directory / "snapshots" / "c0ffee").mkdir(parents=True)
    for file in files:
        (directory / "snapshots" / "c0ffee" / file).write_text("{}")


def test_the_list_has_every_model_and_counts_from_the_networks(dcae, empty_cache) -> None:
    run = dcae("models", "--json")
    run.assert_succeeds()
    rows = {row["name"]: row for row in json.loads(run.stdout)}
    assert {EMBEDDED_AUTOENCODER, *AUTOENCODERS} <= rows.keys()
    row = rows["dc-ae-f64c128-in-1.0"]
    assert (row["spatial_compression_ratio"], row["latent_channels"]) == (64, 128)
    assert row["encoder_parameters"] == 264_550_528
    assert row["on_disk"] == "no"
    assert rows[EMBEDDED_AUTOENCODER]["on_disk"] == "in the package"


def test_a_measured_scaling_factor_is_short_in_the_table_and_whole_in_json(dcae, empty_cache) -> None:
    [row] = json.loads(dcae("models", "list", EMBEDDED_AUTOENCODER, "--json").stdout)
    assert len(str(row["scaling_factor"])) > 10
    assert f" {row['scaling_factor']:.5g} " in dcae("models", "list", EMBEDDED_AUTOENCODER).stdout


def test_the_table_takes_a_pattern_and_fits_one_line_a_model(dcae, empty_cache) -> None:
    run = dcae("models", "list", "*sana-1*")
    run.assert_succeeds()
    header, *rows = run.stdout.splitlines()
    assert "GMACs" in header
    assert [row.split()[0] for row in rows] == [name for name in AUTOENCODERS if "sana-1" in name]
    assert "647.4 + 1046.1" in rows[0]
    dcae("models", "list", "no-such*").assert_fails(2, "no-such*")


def test_diffusion_models_have_the_published_size_and_cost(dcae, empty_cache) -> None:
    put_into_cache(empty_cache, "mit-han-lab/dc-ae-f32c32-in-1.0-usit-h-in-512px", "config.json", "model.safetensors")
    rows = {row["name"]: row for row in json.loads(dcae("models", "list", "*-in-512px*", "--json").stdout)}
    assert rows.keys() == DENOISERS.keys() - {EMBEDDED_DENOISER}
    with_dc_gen = {"f32c32-in-1.0-sit-xl": 674.85, "f64c128-1.5-usit-2b": 1580.40, "f64c128-1.5-usit-3b": 3107.73}
    for name, parameters in with_dc_gen.items():
        assert round(rows[f"dc-ae-{name}-in-512px"]["parameters"] / 1e6, 2) == parameters
        assert rows[f"dc-ae-{name}-in-512px"]["prediction"] == "velocity"
    printed = {
        "uvit-s": (44.79, 12.27),
        "usit-h": (500.87, 133.25),
        "dit-xl": (674.89, 118.68),
        "uvit-2b": (1580.40, 414.91),
    }
    for size, (parameters, gmacs) in printed.items():
        row = rows[f"dc-ae-f32c32-in-1.0-{size}-in-512px"]
        assert round(row["parameters"] / 1e6, 2) == parameters
        assert row["macs"] / 1e9 == pytest.approx(gmacs, rel=0.005)
        assert row["on_disk"] == ("cached" if size == "usit-h" else "no")
    table = dcae("models", "list", "*usit*").stdout
    assert "velocity" in table
    assert "1580.40" in table


def test_leading_channels_have_names(dcae, empty_cache) -> None:
    """In the row of the whole model, or on rows of their own where they are asked for."""
    [row] = json.loads(dcae("models", "list", "dc-ae-f32c128-1.5*", "--json").stdout)
    assert row["leading_channels"] == [16, 32, 48, 64, 80, 96, 112]
    assert "128 (-c16 ... -c112)" in dcae("models", "list", "dc-ae-f32c128-1.1").stdout
    [row] = json.loads(dcae("models", "list", "dc-ae-f32c128-1.5-c48", "--json").stdout)
    assert row["latent_channels"] == 48
    dcae("models", "download", "dc-ae-f32c128-1.5-c50").assert_fails(2, "dc-ae-f32c128-1.5-c50")


def test_a_model_counts_as_cached_only_with_all_its_files(dcae, empty_cache) -> None:
    put_into_cache(empty_cache, "mit-han-lab/dc-ae-f32c32-in-1.0", "config.json", "model.safetensors")
    put_into_cache(empty_cache, "mit-han-lab/dc-ae-f32c32-mix-1.0", "config.json")
    rows = json.loads(dcae("models", "list", "*f32c32-*-1.0", "--json").stdout)
    on_disk = {row["name"]: row["on_disk"] for row in rows}
    assert on_disk["dc-ae-f32c32-in-1.0"] == "cached"
    assert on_disk["dc-ae-f32c32-mix-1.0"] == "no"


def test_download_without_a_network_names_file_cache_and_the_way_out(dcae, empty_cache) -> None:
    run = dcae("models", "download", "dc-ae-f32c32-in-1.0")
    run.assert_fails(5, "config.json", str(empty_cache), "--model DIR")


def test_download_of_an_unknown_model_names_the_nearest(dcae) -> None:
    dcae("models", "download", "dc-ae-f32c32-in-1.1").assert_fails(2, "dc-ae-f32c32-in-1.0")


def test_download_says_where_a_cached_model_lies(dcae, empty_cache) -> None:
    name = "mit-han-lab/dc-ae-f32c32-in-1.0"
    put_into_cache(empty_cache, name, "config.json", "model.safetensors")
    config = empty_cache / "models--mit-han-lab--dc-ae-f32c32-in-1.0" / "snapshots" / "c0ffee" / "config.json"
    config.write_text('{"model_name": "dc-ae-f32c32-in-1.0"}')
    run = dcae("models", "download", name)
    run.assert_succeeds()
    assert run.stdout == f"{name}: {config.parent}\n"


def test_download_for_a_program(dcae) -> None:
    (found,) = json.loads(dcae("models", "download", "dc-ae-f32c32-tiny-1.0", "--json").stdout)
    assert found["name"] == "dc-ae-f32c32-tiny-1.0"
    assert (Path(found["directory"]) / "dcae.json").is_file()


def test_download_lacking_a_name_shows_an_example(dcae) -> None:
    dcae("models", "download").assert_fails(2, "NAME", "dcae models download dc-ae-f32c32-in-1.0")


def test_a_network_that_is_not_there_is_told_at_once(dcae, empty_cache, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    nobody_there = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", nobody_there)
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    dcae("models", "download", "dc-ae-f32c32-in-1.0").assert_fails(5, "config.json", str(empty_cache))
    assert not slept, "no waiting and trying again"


def test_the_list_counts_nothing(dcae, empty_cache, monkeypatch) -> None:
    def fail(*arguments):
        raise AssertionError("counted")

    monkeypatch.setattr("dcae_core.models.complexity.autoencoder_complexity", fail)
    monkeypatch.setattr("dcae_core.models.complexity.denoiser_complexity", fail)
    dcae("models").assert_succeeds()


def test_the_list_does_without_torch() -> None:
    script = (
        "import sys; from dcae_cli.__main__ import main; sys.argv = ['dcae', 'models']\n"
        "try: main()\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert EMBEDDED_AUTOENCODER in run.stdout, run.stderr
    assert run.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize(
    ("part", "name"), [("tiny", EMBEDDED_AUTOENCODER), ("emoji", EMBEDDED_DENOISER), ("usit-h", "usit-h-in-512px")]
)
def test_a_part_of_a_name_is_answered_with_the_names_that_hold_it(dcae, empty_cache, part, name) -> None:
    dcae("models", "download", part).assert_fails(2, f"unknown model '{part}'", "did you mean", name)


@pytest.mark.parametrize("command", [("reconstruct", "x.png", "--model"), ("models", "download")])
def test_a_mistyped_path_is_no_hub_id(dcae, empty_cache, tmp_path, monkeypatch, command) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "x.png").write_bytes(b"")
    dcae(*command, "runs/mien").assert_fails(3, "no directory or file runs/mien", "did you mean runs/mine?")


class _Response:
    def __init__(self, status_code: int) -> None:
        self.status_code = status_code


class _AnsweredError(Exception):
    def __init__(self, status_code: int) -> None:
        super().__init__("the answer")
        self.response = _Response(status_code)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError("[Errno -2] Name or service not known"), "(DNS)"),
        (OSError("Unable to connect to proxy"), "HTTPS_PROXY"),
        (_AnsweredError(401), "refuses access (401): run `hf auth login`"),
        (_AnsweredError(407), "(407)"),
        (_AnsweredError(503), "answers 503"),
        (TimeoutError("timed out"), "in time"),
        (ConnectionRefusedError("Connection refused"), "refused"),
        (OSError("certificate verify failed"), "certificate"),
    ],
)
def test_a_download_says_why_it_failed(dcae, empty_cache, monkeypatch, error, words) -> None:
    def fail(*arguments, **options):
        raise RuntimeError("wrapped") from error

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", fail)
    run = dcae("models", "download", "dc-ae-f32c32-in-1.0")
    run.assert_fails(5, "config.json", str(empty_cache), "could not be downloaded: ", words)


def test_an_offline_switch_is_named(dcae, empty_cache) -> None:
    dcae("models", "download", "dc-ae-f32c32-in-1.0").assert_fails(5, "HF_HUB_OFFLINE is set")
