"""The command line, over all parts: `headwater COMMAND`. One file a command; `program` has the list of them.

Everything else in `headwater` is what the parts share. It does not know that there is a command line.
"""

from headwater.cli.program import main

__all__ = ["main"]
