"""`dcae bench` from the command line."""

import json

import pytest

from dcae_core.benchmarking import measuring as machine


@pytest.fixture(autouse=True)
def quick_rates(monkeypatch) -> None:
    monkeypatch.setitem(machine._MATRIX_SIDE, "cpu", 256)
    monkeypatch.setitem(machine._COPY_BYTES, "cpu", 2**20)


def test_table_names_machine_versions_and_type(dcae) -> None:
    run = dcae("bench", "encode", "--resolution", "64", "--repeats", "2", "--against", "plain")
    run.assert_succeeds()
    for words in ("thread(s), float32", "torch 2", "matrix product", "dc-ae-f32c32-tiny-1.0, 64 px", "x as fast"):
        assert words in run.stdout


def test_json_has_every_figure(dcae) -> None:
    run = dcae("bench", "decode", "denoise", "--resolution", "64", "--repeats", "2", "--json", "--dtype", "bf16")
    run.assert_succeeds()
    document = json.loads(run.stdout)
    assert document["machine"]["dtype"] == "bfloat16"
    assert document["notes"] == ["dc-ae-f32c32-in-1.0-uvit-s-in-512px: random weights, as none are cached"]
    decode, denoise = document["measurements"]
    assert decode["what"] == "decode"
    assert len(decode["seconds"]) == len(decode["cpu_seconds"]) == 2
    for measurement in (decode, denoise):
        for name in ("items_per_second", "flops", "share_of_matmul", "limit_seconds", "held_bytes"):
            assert measurement[name] > 0


def test_headline_prints_both_ratios_beside_the_papers(dcae) -> None:
    run = dcae("bench", "headline", "--small", "--batch", "1", "--repeats", "1")
    run.assert_succeeds()
    for words in ("paper, one H100: 17.9x", "paper, one H100: 19.1x", "timed 1 of 30", "say nothing about UViT-H"):
        assert words in run.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["decoding"], ["decoding", "latent-reading"]),
        (["headline", "encode"], ["dcae bench headline"]),
        (["encode", "--against", "peer"], ["peer", "diffusers"]),
        (["encode", "--resolution", "100"], ["100", "32"]),
        (["encode", "--model", "dc-ae-f32c32"], ["did you mean", "dc-ae-f32c32-in-1.0"]),
        (["encode", "--against", "diffusers", "--resolution", "64"], ["AutoencoderDC"]),
    ],
)
def test_what_cannot_be_measured_is_said_in_one_line(dcae, arguments, words) -> None:
    dcae("bench", *arguments).assert_fails(2, *words)
