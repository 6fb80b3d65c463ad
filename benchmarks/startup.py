"""Time what every command takes before it does anything: `--help` from the shell, and importing torch beside it.

python benchmarks/startup.py [--repeats 5]
"""

import argparse
import os
import subprocess
import sys
import time
from statistics import median

from dcae_cli.app import COMMANDS


def seconds(command: list[str]) -> tuple[float, float]:
    """By the clock, and of the processors."""
    before, start = os.times(), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    elapsed, after = time.perf_counter() - start, os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return elapsed, used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    commands = {
        "dcae --help": ["-m", "dcae_cli", "--help"],
        **{f"dcae {name} --help": ["-m", "dcae_cli", name, "--help"] for name in COMMANDS},
        "import torch": ["-c", "import torch"],
        "nothing": ["-c", ""],
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for _ in range(repeats):
        for name, arguments in commands.items():
            times[name].append(seconds([sys.executable, *arguments]))
    for name, measured in times.items():
        elapsed, used = (median(values) for values in zip(*measured, strict=True))
        print(f"{name:30} {elapsed:.2f} s, {used:.2f} s of CPU")


if __name__ == "__main__":
    main()
