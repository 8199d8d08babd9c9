"""Points inside and outside a circle."""

import torch

from flatkit.data.dataset import Dataset, Split


def build_ring(*, samples=40, radius=1.0):
    """Return points of the plane with their side of the circle; every fifth is for the test."""
    points = torch.randn(samples, 2, generator=torch.Generator().manual_seed(0))
    sides = (points.norm(dim=1) > radius).long()
    test = torch.arange(samples) % 5 == 0
    return Dataset(
        name="ring",
        kwargs={"samples": samples, "radius": radius},
        train=Split(points[~test], sides[~test]),
        test=Split(points[test], sides[test]),
        classes=2,
    )
