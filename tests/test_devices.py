"""Settings of the whole process are put back where they were."""

import contextlib

import pytest
import torch

from dcae_core.devices import allow_tf32


def switches() -> tuple[bool, bool]:
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("allowed", [True, False, None])
def test_tf32_is_set_for_products_and_convolutions_and_put_back(allowed: bool | None) -> None:
    before = switches()
    with contextlib.suppress(KeyboardInterrupt), allow_tf32(allowed):
        assert switches() == (before if allowed is None else (allowed, allowed))
        raise KeyboardInterrupt
    assert switches() == before
