"""One process at a time in a folder: a lock that ends with its process, however it ends."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from data.errors import UserError
from pipeline.execution.console import say

__all__ = ["locked"]

_WITHOUT_LOCKS = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL)


@contextlib.contextmanager
def locked(folder: Path, what: str, name: str = ".lock") -> Iterator[None]:
    """Keep other processes out of a folder.

    Args:
        folder: made where it is not there, with those above it; taken away again where nothing came into them.
        what: this process does there, for the message that others get. name: of the lock's file.

    Raises:
        UserError: another process works there; says which.
    """
    made = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    file = _taken(path, folder)
    try:
        file.truncate(0)
        file.write(f"{what}, process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield
    finally:
        # While it is held: whoever waits for this file finds another one, or none, and tries again.
        path.unlink(missing_ok=True)
        file.close()
        with contextlib.suppress(OSError):
            for one in made:
                one.rmdir()


def _taken(path: Path, folder: Path) -> IO[str]:
    """The lock's file, locked."""
    while True:
        file = path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "starting"
            file.close()
            raise UserError(
                f"{folder}: another process is working here ({holder}); wait for it or stop it, or choose another "
                "folder"
            ) from error
        except OSError as error:
            if error.errno not in _WITHOUT_LOCKS:
                raise
            say(f"{folder}: its file system knows no locks: do not start a second command there meanwhile")
            return file
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()
