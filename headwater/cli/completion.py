"""`headwater completion`: what a shell needs to complete commands and flags."""

import argparse

import shtab


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        'For bash: eval "$(headwater completion bash)". For zsh, write it to a file _headwater in $fpath. '
        "For fish: headwater completion fish | source."
    )
    parser.add_argument("shell", metavar="SHELL", choices=("bash", "zsh", "fish"))


def run(arguments: argparse.Namespace) -> int:
    from headwater.cli.program import make_parser

    print(shtab.complete(make_parser(), arguments.shell))
    return 0
