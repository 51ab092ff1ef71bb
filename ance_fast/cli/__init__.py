"""The command line: `ance-fast COMMAND`, one file a command."""
