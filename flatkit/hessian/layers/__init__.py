"""Networks as lists of layers, each with its own rule for Pearlmutter's R-operator.

A product with the Hessian then costs the multiplications that it must, and nothing else: no graph
is walked, no derivative is broken into element-wise kernels, nothing is computed twice.
"""
