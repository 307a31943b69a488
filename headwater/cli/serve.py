"""`headwater serve`: one engine."""

import argparse
from collections.abc import Callable

from headwater.cli.parser import CommandError, UsageError
from headwater.cli.parts import part
from headwater.cli.settings import add_settings, read_settings
from headwater_engine.config import EngineSettings
from headwater_engine.errors import LoadError
from headwater_engine.models.source import look


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Serves one model over the OpenAI API. Every flag can also be set by the environment variable in its help."
    )
    add_settings(parser, EngineSettings, positional="model")


def run(arguments: argparse.Namespace) -> int:
    settings = read_settings(arguments, EngineSettings, positional="model")
    if settings.max_batched_tokens < settings.max_num_seqs:
        raise UsageError(
            f"--max-batched-tokens ({settings.max_batched_tokens}) must be at least --max-num-seqs "
            f"({settings.max_num_seqs}): each running request decodes a token in every step"
        )
    if (mistake := settings.mistake_of_ranks()) is not None:
        raise UsageError(mistake)
    try:
        look(settings.model)  # before torch is imported, which takes seconds
    except LoadError as error:
        raise CommandError(str(error)) from None
    serve: Callable[[EngineSettings], int] = part("headwater_engine.server.serve", "engine").run
    return serve(settings)
