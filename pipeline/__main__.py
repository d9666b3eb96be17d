"""``python -m pipeline COMMAND``: see ``python -m pipeline --help``."""

from __future__ import annotations

import signal
import sys

if __name__ == "__main__":
    # Imports take seconds, in which Ctrl-C would end in their traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from pipeline.command.cli import main
    from pipeline.execution.processes import keep_freed_memory

    keep_freed_memory()
    sys.exit(main(sys.argv[1:]))
