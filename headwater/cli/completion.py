"""`headwater completion`: what a shell needs to complete commands, flags, files and models."""

import argparse
import pkgutil

import shtab


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        'For bash: eval "$(headwater completion bash)". For zsh, write it to a file _headwater in $fpath. '
        "For fish: headwater completion fish | source."
    )
    parser.add_argument("shell", metavar="SHELL", choices=("bash", "zsh", "fish"))


def run(arguments: argparse.Namespace) -> int:
    from headwater.cli.program import make_parser

    parser = make_parser()
    print(shtab.complete(parser, arguments.shell, preamble={"bash": _models_in_bash()}))  # type: ignore[arg-type]
    return 0


def _models_in_bash() -> str:
    """Completes sources of models that are on this machine. bash would break them at their colon."""
    from headwater_engine.models.shapes import SHAPES

    packages = [name for _, name, _ in pkgutil.iter_modules() if name.startswith("llm_")]
    sources = [*(f"package://{name}" for name in packages), *(f"random:{name}" for name in SHAPES)]
    return f"""\
COMP_WORDBREAKS=${{COMP_WORDBREAKS//:}}
_headwater_models() {{
  compgen -f -- "$1"
  compgen -W "{" ".join(sources)}" -- "$1"
}}"""
