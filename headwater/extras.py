"""The extras of Headwater: what a part needs that is not always installed."""


def missing(package: str, extra: str) -> str:
    """What is said where `package` is not there. No index has Headwater: it is installed from its repository."""
    return f"{package} is missing: in a clone of Headwater, make setup or pip install -e '.[{extra}]' installs it"
