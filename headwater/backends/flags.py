"""Flags among arguments, as launchers read them."""

import re
from collections.abc import Iterable


def meant(argument: str, flags: Iterable[str]) -> str | None:
    """Which of `flags`, written with dashes, an argument sets. None: none of them.

    Launchers take underscores for dashes, the beginning of a name for the name (argparse), `--no-NAME` for its
    contrary, `--NAME.KEY` for a part of it (vLLM), and a value right behind a letter (`-p80`).
    """
    given = re.split("[=.]", argument, maxsplit=1)[0].replace("_", "-")
    if not re.match("--?[a-zA-Z]", given):
        return None
    given = re.sub("^--no-", "--", given)
    known = sorted(flags)
    if given in known:
        return given
    return next((flag for flag in known if flag.startswith(given) or (len(flag) == 2 and given.startswith(flag))), None)
