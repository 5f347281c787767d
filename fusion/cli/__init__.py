"""The command line. Each command is a typed function; see `fusion.cli.table`."""
