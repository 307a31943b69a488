"""A rank ends with the HTTP process that started it, however that one ends and whatever is being done here.

Nobody could stop it any more: it would hold its memory, or its GPU, for ever.
"""

import ctypes
import os
import signal
import sys
from typing import Final

VARIABLE: Final = "HEADWATER_ENGINE_PARENT"
"""Has the id of the HTTP process. To ask for the parent instead would be too late where that is gone already."""
_PR_SET_PDEATHSIG: Final = 1


def end_with_parent() -> None:
    """Have the system kill this process when its parent ends, and leave at once where that has happened.

    When to stop is the parent's to say. Ctrl-C goes to all processes of a terminal, and SIGTERM to all of a service:
    from here on they do nothing to this one.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if not parent_lives():
        sys.exit("The HTTP process is gone.")


def parent_lives() -> bool:
    """For systems that kill nobody: the loop asks, at least each second."""
    return os.getppid() == int(os.environ[VARIABLE])
