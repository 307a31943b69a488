"""`python -m headwater_engine.core REQUESTS REPLIES`: the engine process, as the HTTP process starts it.

Whose it is comes first: what is imported next takes seconds, and what is loaded then may take minutes.
"""

import sys

from headwater_engine.core.parent import end_with_parent

if __name__ == "__main__":
    end_with_parent()
    from headwater_engine.distributed.lifeline import own_lifeline
    from headwater_engine.distributed.place import own_place

    place = own_place()
    lifeline = own_lifeline(0)
    if lifeline is not None:
        lifeline.start()
    from headwater_engine.core.process import main

    sys.exit(main(place, lifeline))
