"""What engine, router and operator all speak, and the front door: resource, prefix, events, OpenAI types, CLI."""

__version__ = "0.1.0"
