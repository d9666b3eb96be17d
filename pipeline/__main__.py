"""``python -m pipeline COMMAND``: see ``python -m pipeline --help``."""

from __future__ import annotations

import os
import signal
import sys

if __name__ == "__main__":
    # Threads of torch that wait for each other keep their cores for milliseconds by default, thousands of times in
    # a step. Beside other processes, which could use them, trainings took more than ten times as long. The variable
    # is read when torch is loaded, here and in workers.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    # Imports take seconds, in which Ctrl-C would end in their traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from pipeline.command.cli import main
    from pipeline.execution.processes import keep_freed_memory

    keep_freed_memory()
    sys.exit(main(sys.argv[1:]))
