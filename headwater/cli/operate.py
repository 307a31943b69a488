"""`headwater operate`: the Kubernetes operator."""

import argparse
from collections.abc import Callable

from headwater.cli.parts import part
from headwater.cli.settings import add_settings, read_settings
from headwater_operator.config import OperatorSettings


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Turns the ModelDeployments of a cluster into engines. Speaks to the cluster of its own pod, or to that of "
        "KUBECONFIG. Every flag can also be set by the environment variable in its help."
    )
    add_settings(parser, OperatorSettings)


def run(arguments: argparse.Namespace) -> int:
    settings = read_settings(arguments, OperatorSettings)
    operate: Callable[[OperatorSettings], int] = part("headwater_operator.main", "operator").run
    return operate(settings)
