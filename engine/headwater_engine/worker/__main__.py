"""`python -m headwater_engine.worker`: a rank above the first, as `distributed/group.py` starts it.

Whose it is comes first: what is imported next takes seconds, and what is loaded then may take minutes.
"""

import sys

from headwater_engine.core.parent import end_with_parent

if __name__ == "__main__":
    end_with_parent()
    from headwater_engine.distributed.lifeline import own_lifeline
    from headwater_engine.distributed.place import own_place

    place = own_place()
    assert place is not None, "whoever starts a rank says which"
    lifeline = own_lifeline(place.rank)
    assert lifeline is not None, "whoever starts a rank wants to hear of it"
    lifeline.start()
    from headwater_engine.worker.rank import main

    sys.exit(main(place, lifeline))
