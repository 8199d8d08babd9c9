"""Gaussian blobs: synthetic data for tests and quick trials; needs no download and no package."""

import numpy as np

from flatkit.checks import check_count, check_fraction, check_positive
from flatkit.data.dataset import Dataset, stratified_dataset


def build_gaussians(
    *,
    samples: int = 400,
    classes: int = 4,
    features: int = 8,
    spread: float = 0.5,
    test_fraction: float = 0.2,
    data_seed: int = 0,
) -> Dataset:
    """Return classes x ~ N(centre, spread² I) around random centres on the unit sphere.

    Args:
        samples: in all, training and test; the classes take turns, so they are balanced.
        classes: number of blobs.
        features: dimension of a sample.
        spread: standard deviation of every coordinate.
        test_fraction: of every class.
        data_seed: of the draw; the seed of a training run does not change it.

    >>> blobs = build_gaussians(samples=10, classes=2, features=3)
    >>> blobs.train.targets.bincount().tolist(), blobs.test.targets.bincount().tolist()
    ([4, 4], [1, 1])
    """
    check_count("samples", samples, minimum=2 * check_count("classes", classes))
    check_count("features", features)
    check_positive("spread", spread)
    check_fraction("test_fraction", test_fraction)
    generator = np.random.default_rng(check_count("data_seed", data_seed, minimum=0))
    # A direction of a standard normal vector is uniform on the sphere.
    centres = generator.standard_normal((classes, features))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    targets = np.arange(samples) % classes
    noise = generator.standard_normal((samples, features))
    inputs = (centres[targets] + spread * noise).astype(np.float32)  # [N, features]
    kwargs = {
        "samples": samples,
        "classes": classes,
        "features": features,
        "spread": spread,
        "test_fraction": test_fraction,
        "data_seed": data_seed,
    }
    return stratified_dataset(
        "gaussians", kwargs, inputs, targets, test_fraction=test_fraction, seed=data_seed
    )
