"""Along the first weights, one at a time."""

from flatkit.landscape.directions.kind import Kind


class Coordinates(Kind):
    """The axes of the first weights."""

    name = "coordinates"
    help = "along the first weights, one at a time"

    def make(self, request):
        """Return a line along the first weight, or the plane of the first two."""
        import torch

        from flatkit.landscape.subspaces import Subspace

        theta = request.objective.theta
        axes = torch.eye(request.settings.dimensions, len(theta)).to(theta)
        return Subspace("coordinates", theta, axes)

    def usual_range(self, subspace, number):
        """Return two units to each side."""
        return -2.0, 2.0

    def axis_label(self, surface, number, text):
        """Return which weight it is."""
        return f"weight {number + 1}"
