"""Which endpoint holds which prefix: learned from our own dispatches, corrected by the engines' KV events."""

from headwater_router.index.prefixes import IndexSize, PrefixIndex
from headwater_router.index.prompt import PromptBuilder

__all__ = ["IndexSize", "PrefixIndex", "PromptBuilder"]
