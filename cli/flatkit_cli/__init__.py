"""The command line: parse, call flatkit, print."""
