"""Why a server cannot listen, in the same words for all that listen, and what to do then."""

import errno
import os
import socket


def cannot_listen(host: str, port: int, error: OSError, of: str = "") -> str:
    """To follow a program's name. `of`: which port it is, where the program has several, as its flags begin."""
    where = f"cannot listen on {host}:{port}"
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return f"{where}: this machine has no such address; choose another --{of}host"
    match error.errno:
        case errno.EADDRINUSE:
            return f"{where}: another program listens there; choose another --{of}port, or 0 for a free one"
        case errno.EACCES | errno.EPERM:
            return f"{where}: this user may not; choose a --{of}port above 1023"
    # asyncio's own text names the address again.
    reason = os.strerror(error.errno) if error.errno else str(error)
    return f"{where}: {reason[:1].lower()}{reason[1:]}; choose another --{of}port or --{of}host"
