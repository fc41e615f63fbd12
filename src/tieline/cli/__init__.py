"""The command line: arguments to options and exit codes."""
