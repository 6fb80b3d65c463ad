"""Time the Fréchet distance at 2048 dimensions beside scipy.linalg.sqrtm of the product, in one run.

    python benchmarks/frechet_distance.py

Features are drawn with a spectrum like that of Inception features: a few strong directions and a long tail.
"""

import time

import numpy as np
from scipy.linalg import sqrtm

from dcae_core.metrics.frechet import Gaussian, frechet_distance

NUM_FEATURES = 2048


def features_of(num_images: int, seed: int) -> Gaussian:
    rng = np.random.default_rng(seed)
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((NUM_FEATURES, NUM_FEATURES)))[0]
    scale = np.geomspace(3, 1e-2, NUM_FEATURES) * (1 + 0.1 * seed)
    rows = (rng.standard_normal((num_images, NUM_FEATURES)) * scale) @ rotation
    return Gaussian(rows.mean(axis=0), np.cov(rows, rowvar=False))


def with_sqrtm(a: Gaussian, b: Gaussian) -> float:
    shift = a.mean - b.mean
    root = sqrtm(a.covariance @ b.covariance).real
    return float(shift @ shift + np.trace(a.covariance + b.covariance - 2 * root))


def main() -> None:
    for num_images in (10_000, 1_000):
        a, b = features_of(num_images, 1), features_of(num_images, 2)
        start = time.perf_counter()
        ours = frechet_distance(a, b)
        between = time.perf_counter()
        theirs = with_sqrtm(a, b)
        end = time.perf_counter()
        ours_s, theirs_s = between - start, end - between
        print(
            f"{num_images} images: {ours:.9f} in {ours_s:.2f} s, by sqrtm {theirs:.9f} in {theirs_s:.2f} s: "
            f"{theirs_s / ours_s:.1f}x, relative difference {abs(ours - theirs) / theirs:.1e}"
        )


if __name__ == "__main__":
    main()
