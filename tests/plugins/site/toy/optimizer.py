"""θ ← θ - lr·sign ∇L, as the table of optimizers knows it."""

from flatkit.training.optimizers import OptimizerEntry

SIGN = OptimizerEntry("toy.sign_descent:SignDescent", {"lr": 0.01})
