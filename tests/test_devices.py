"""Settings of the whole process are put back where they were; the processor is known for what it is."""

import contextlib

import pytest
import torch

from dcae_core.devices import allow_tf32, family_in_cpuinfo, processor_family


def switches() -> tuple[bool, bool]:
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("allowed", [True, False, None])
def test_tf32_is_set_for_products_and_convolutions_and_put_back(allowed: bool | None) -> None:
    before = switches()
    with contextlib.suppress(KeyboardInterrupt), allow_tf32(allowed):
        assert switches() == (before if allowed is None else (allowed, allowed))
        raise KeyboardInterrupt
    assert switches() == before


@pytest.mark.parametrize(
    ("cpuinfo", "family"),
    [
        ("vendor_id\t: GenuineIntel\nflags\t\t: fpu avx2 fma avx512f avx512bw\n", ("Intel", "AVX-512")),
        ("vendor_id\t: AuthenticAMD\nflags\t\t: fpu fma avx2\n\nflags\t\t: avx512f\n", ("AMD", "AVX2")),
        ("vendor_id\t: AuthenticAMD\nflags\t\t: fpu avx\n", ("AMD", "")),
        ("vendor_id\t: HygonGenuine\nflags\t\t: fpu avx2 fma\n", ("", "AVX2")),
        ("CPU implementer\t: 0x41\nFeatures\t: fp asimd sve\n", ("", "")),
        ("", ("", "")),
    ],
)
def test_the_family_of_a_processor_is_what_linux_says_of_it(cpuinfo, family):
    assert family_in_cpuinfo(cpuinfo) == family
    assert (str(family_in_cpuinfo(cpuinfo)) == "unknown") == (not all(family))


@pytest.mark.parametrize(
    ("processor", "capability", "family"),
    [
        ("Intel64 Family 6 Model 143 Stepping 8, GenuineIntel", "AVX512", ("Intel", "AVX-512")),
        ("AMD64 Family 25 Model 1 Stepping 1, AuthenticAMD", "AVX2", ("AMD", "AVX2")),
        ("arm", "DEFAULT", ("", "")),
        ("", "AVX2", ("", "AVX2")),
    ],
)
def test_the_family_of_a_processor_elsewhere(processor, capability, family, tmp_path, monkeypatch):
    monkeypatch.setattr("dcae_core.devices._CPUINFO", tmp_path / "none")
    monkeypatch.setattr("platform.processor", lambda: processor)
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: capability)
    assert processor_family.__wrapped__() == family
