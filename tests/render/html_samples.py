"""Comparisons for the tests of pages: every part of a page is in one of them."""

import math

from flatkit.results import Comparison, Entry, Report, Result

OBJECTIVE = {
    "samples": 100,
    "samples_available": 400,
    "drawn": "random",
    "indices_sha256": "ab" * 32,
    "loss": "cross_entropy",
    "batchnorm": "eval",
    "dtype": "float64",
    "parameters": 43,
}
X = [-1.0, -0.5, 0.0, 0.5, 1.0]
LINES = [[0.5 + 0.1 * k + t * t for t in X] for k in range(3)]


def report(top: float, **more) -> Report:
    results = [
        Result("loss", 0.5, 0.0, settings={"split": "train"}),
        Result("loss", 0.6, 0.0, settings={"split": "test"}),
        Result("accuracy", 0.975, 0.0, settings={"split": "train"}),
        Result("accuracy", 0.955, 0.0, settings={"split": "test"}),
        Result("gradient_norm", 0.01, 0.0),
        Result("top_eigenvalues", [top, top / 2], [1e-4, 1e-4], "residual"),
        Result("trace", 8 * top, 0.1, "standard_error"),
        *(
            Result(
                "first_order_flatness",
                0.98 * top * rho**2,
                None,
                "lower_bound",
                status="kinks" if rho > 0.05 else "converged",
                settings={"rho": rho, "upper_estimate": 1.2 * top * rho**2},
            )
            for rho in (0.01, 0.1)
        ),
        Result(
            "loss_plane",
            {"x": X, "y": X, "loss": [[1 + top * (a * a + b * b) for a in X] for b in X]},
            0.0,
        ),
    ]
    return Report(
        results,
        checkpoint={"name": "gam", "path": "runs/gam/ckpt.pt", "sha256": "12" * 32, "epoch": 3},
        objective=OBJECTIVE,
        command=("flatkit", "analyze", "my runs/ckpt.pt"),
        environment={"python": "3.11", "torch": "2.13"},
        **more,
    )


def seeds(**tops: list[float]) -> Comparison:
    return Comparison(
        [
            Entry(f"{group}, seed {seed}", group, report(top), seed=str(seed))
            for group, values in tops.items()
            for seed, top in enumerate(values)
        ]
    )


# 10 sorts after 9 as a number, before it as text.
SEVERAL = seeds(sgd=[9.0, 9.3, 9.1], gam=[1.0, 1.1, 0.9], sam=[10.0, 10.4, 10.1])
ONE = Comparison([Entry("gam", "gam", report(1.0))])
HOSTILE_NAME = "</script><script>window.hit = 1</script><img src=x onerror='window.hit = 2'>\"'"
HOSTILE = Comparison([Entry(HOSTILE_NAME + str(n), HOSTILE_NAME, report(1.0 + n)) for n in (0, 1)])
BROKEN = Comparison(
    [
        Entry("whole", "whole", report(1.0)),
        Entry(
            "broken",
            "broken",
            Report(
                [
                    Result("trace", "eight"),
                    Result("top_eigenvalues", [3.0], [0.1], "residual"),
                    Result("loss_plane", {"x": [0.0], "loss": "none"}),
                    Result("of_tomorrow", {"deep": [math.inf]}, status="tired"),
                ],
                objective={"samples": "many", "examination": None},
            ),
        ),
    ]
)
EVERY = {"several": SEVERAL, "one": ONE, "hostile": HOSTILE, "broken": BROKEN}
