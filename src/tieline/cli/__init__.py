"""The command line: arguments to options and exit codes."""

from typing import Final

USAGE_ERROR: Final = 2
INTERRUPTED: Final = 130
"""Exit code after Ctrl-C, as shells have it."""
BROKEN_PIPE: Final = 141
"""Exit code when the reader of standard output is gone: 128 and the number of SIGPIPE, as shells have it."""
