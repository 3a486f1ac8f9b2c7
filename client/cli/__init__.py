"""The `polyhead` command: one file for each group of commands."""
