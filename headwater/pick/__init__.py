"""Which backend for which workload: one pure function behind `headwater pick` and `backend.type: auto`.

docs/choosing.md says what is chosen when, and writes the arithmetic out.
"""

from headwater.pick.auto import resolve_auto
from headwater.pick.choice import ImpossibleError, Pick, pick
from headwater.pick.workload import Workload, WorkloadError

__all__ = ["ImpossibleError", "Pick", "Workload", "WorkloadError", "pick", "resolve_auto"]
