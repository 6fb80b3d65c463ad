"""Runs `gpu_paths.py` in a process of its own: once there was a fake GPU, autograd asks for a driver for good."""

import subprocess
import sys
from pathlib import Path

from tests.fake_gpu import needs_cuda_build

PATHS = Path(__file__).with_name("gpu_paths.py")


@needs_cuda_build
def test_what_a_gpu_would_run() -> None:
    run = subprocess.run([sys.executable, "-m", "pytest", "-q", PATHS], capture_output=True, text=True, timeout=280)
    assert run.returncode == 0, run.stdout[-4000:]
