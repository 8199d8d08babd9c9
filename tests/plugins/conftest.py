"""The package in `site` is found by its entry points, not collected."""

collect_ignore = ["site"]
