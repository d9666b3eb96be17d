"""``python -m pipeline COMMAND``: see ``python -m pipeline --help``."""

from __future__ import annotations

import sys

from pipeline.command.cli import main
from pipeline.execution.processes import keep_freed_memory

if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main(sys.argv[1:]))
