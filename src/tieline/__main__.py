"""``python -m tieline``: the same as the command ``tieline``."""

import sys

from tieline.cli.main import main

sys.exit(main())
