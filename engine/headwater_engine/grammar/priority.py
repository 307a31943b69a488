"""How much of the CPUs a thread beside the engine's loop may take, where the kernels use all of them.

Linux weighs each thread by its own niceness: one of 10 gets a tenth of what one of 0 gets where both want a core, and
all of a core that nobody else wants.
"""

import os
import threading
from typing import Final

PATIENT: Final = 10
"""Somebody waits for it, and all others go on meanwhile: a form that takes 0.4 s of CPU to compile."""
LAST: Final = 19
"""It takes what nobody else wants."""


def stand_back(niceness: int) -> None:
    """This thread, from now on, unless it stands further back already. Nothing where the system cannot."""
    if hasattr(os, "setpriority"):
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, max(niceness, os.getpriority(os.PRIO_PROCESS, thread)))
