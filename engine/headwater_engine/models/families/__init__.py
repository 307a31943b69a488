"""The models that run natively, a file for each `model_type`: how to read its config.json, and what its blocks are.

A new file here is found by itself. Most differ from Llama by a few arguments; one whose blocks are of another make
brings a class for them (docs/engine.md has the steps).
"""

import pkgutil
from collections.abc import Mapping
from importlib import import_module

from headwater_engine.models.family import Family

FAMILIES: Mapping[str, Family] = {
    module.name: import_module(f"{__name__}.{module.name}").FAMILY for module in pkgutil.iter_modules(__path__)
}
"""By `model_type`."""
