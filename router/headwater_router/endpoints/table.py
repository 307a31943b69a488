"""Pods as the API server prints them for people: their metadata and a few columns, and nothing of their specs.

A pod's spec holds the environment of its containers, which is no business of the router's. The router asks for the
same table that `kubectl get pods -o wide` shows, and reads one column of it: the address.
"""

from typing import Any, Final

ACCEPT: Final = "application/json;as=Table;v=v1;g=meta.k8s.io"
_COLUMN: Final = "IP"


class PodTable:
    """Makes rows into objects with `metadata` and `address`. In a watch only the first event names the columns."""

    def __init__(self) -> None:
        self._column: int | None = None

    def learn(self, table: Any) -> None:
        """Which column is which, if it says so. Raises ValueError where the one that matters is missing."""
        if columns := [column["name"] for column in table.get("columnDefinitions") or ()]:
            if _COLUMN not in columns:
                raise ValueError(f"the API server's table of pods has no column {_COLUMN}")
            self._column = columns.index(_COLUMN)

    def read(self, table: Any) -> list[dict[str, Any]]:
        """Raises ValueError, or KeyError, TypeError, IndexError, for what is no table of pods."""
        if table["kind"] != "Table":
            raise ValueError(f"asked for a table, the API server answered with a {table['kind']}")
        self.learn(table)
        return [self._object(row) for row in table.get("rows") or ()]

    def _object(self, row: Any) -> dict[str, Any]:
        if self._column is None:
            raise ValueError("the API server's table of pods does not name its columns")
        return {"metadata": row["object"]["metadata"], "address": row["cells"][self._column]}
