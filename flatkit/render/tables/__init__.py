"""Tables of results, for the terminal and for Markdown."""
