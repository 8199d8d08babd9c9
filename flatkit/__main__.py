"""`python -m flatkit` is the command `flatkit`."""

from runpy import run_module

if __name__ == "__main__":  # by name: nothing in flatkit imports its command line
    run_module("flatkit_cli.main", run_name="__main__")
