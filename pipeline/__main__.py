"""``python -m pipeline COMMAND``: see ``python -m pipeline --help``."""

from __future__ import annotations

import sys

from pipeline.allocator import keep_freed_memory
from pipeline.cli import main

if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main(sys.argv[1:]))
