"""The words that kinds of failure share."""

import pytest
import torch

from dcae_core.errors import is_out_of_memory, unknown_name


def test_an_unknown_name_comes_with_the_nearest_or_with_all() -> None:
    known = ("heun", "euler", "ddim")
    few = "unknown sampler 'huen'; did you mean heun? choose from heun, euler, ddim"
    assert str(unknown_name("sampler", "huen", known)) == few
    many = [*known, *(f"other-{number}" for number in range(9))]
    assert str(unknown_name("sampler", "huen", many)) == "unknown sampler 'huen'; did you mean heun?"
    assert str(unknown_name("sampler", None, known)) == "unknown sampler None; choose from heun, euler, ddim"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("Storage size calculation overflowed with sizes=[1]"), True),
        (RuntimeError("the size of tensor a must match"), False),
        (ValueError("out of memory is only mentioned"), False),
    ],
)
def test_every_way_of_running_out_of_memory_is_recognised(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected
