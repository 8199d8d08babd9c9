"""SAM, GAM and their relatives inside the training loops of other libraries.

Both are mixins that import nothing of the library whose class they stand before:
`flatkit.integrations.lightning` and `flatkit.integrations.hugging_face`.
"""
