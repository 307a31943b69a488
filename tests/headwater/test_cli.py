"""The commands: help that is quick and whole, errors in one sentence, one table behind flags and variables."""

import re
import subprocess
import sys
from collections.abc import Sequence

import pytest
from pydantic_settings import BaseSettings

from headwater import __version__, cli
from headwater.cli import serve
from headwater.cli.parser import USAGE_ERROR
from headwater.cli.program import COMMANDS
from headwater.cli.settings import flag, variable
from headwater.openai.request import SamplingDefaults
from headwater_engine.config import EngineSettings
from headwater_engine.server import serve as engine_serve
from headwater_operator.config import OperatorSettings
from headwater_router import app as router_app
from headwater_router.config import RouterSettings


def run(*arguments: str) -> int:
    """The exit status of a command, however it ends."""
    try:
        return cli.main(arguments)
    except SystemExit as end:
        return int(end.code or 0)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[EngineSettings]:
    """What `headwater serve` would have served."""
    seen: list[EngineSettings] = []
    monkeypatch.setattr(engine_serve, "run", lambda settings: seen.append(settings) or 0)
    monkeypatch.setattr(serve, "look", lambda source: None)
    return seen


@pytest.fixture
def routed(monkeypatch: pytest.MonkeyPatch) -> list[RouterSettings]:
    seen: list[RouterSettings] = []
    monkeypatch.setattr(router_app, "run", lambda settings: seen.append(settings) or 0)
    return seen


def test_an_interrupt_while_a_command_is_imported_is_no_traceback(monkeypatch) -> None:
    def interrupt(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("headwater.cli.program.importlib.import_module", interrupt)
    assert cli.main(["serve", "random:tiny"]) == 130


def test_version(capsys) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"headwater {__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(command: str, capsys) -> None:
    assert run("--help") == 0
    assert f" {command} " in capsys.readouterr().out
    assert run(command, "--help") == 0
    assert f"usage: headwater {command}" in capsys.readouterr().out


@pytest.mark.parametrize(("command", "settings"), [("serve", EngineSettings), ("route", RouterSettings)])
def test_every_setting_is_a_flag_and_a_variable_with_help(
    command: str, settings: type[BaseSettings], capsys, monkeypatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    assert run(command, "--help") == 0
    options = " ".join(capsys.readouterr().out.partition("-h, --help")[2].split())
    for name, field in settings.model_fields.items():
        if (command, name) != ("serve", "model"):
            entry = options.partition(f" --{flag(name)}")[2]
            assert 0 <= entry.find(field.description) < entry.find(f"[{variable(settings, name)}]")


@pytest.mark.parametrize(
    ("command", "settings"), [("serve", EngineSettings), ("route", RouterSettings), ("operate", OperatorSettings)]
)
def test_help_and_manual_have_settings_under_headings(
    command: str, settings: type[EngineSettings | RouterSettings | OperatorSettings], capsys
) -> None:
    assert run(command, "--help") == 0
    parts = re.split(r"^(\S.*):$", capsys.readouterr().out, flags=re.MULTILINE)
    texts = zip(parts[1::2], parts[2::2], strict=True)
    flags = {title: re.findall(r"^  --([a-z-]+)", text, re.MULTILINE) for title, text in texts}
    expected: dict[str, list[str]] = {}
    for name in settings.model_fields:
        expected.setdefault(settings.groups.get(name) or list(expected)[-1], []).append(flag(name))
    assert len(expected) > 5
    assert {title: flags[title] for title in expected} == {
        title: [each for each in names if each != "model"] for title, names in expected.items()
    }
    assert run("man") == 0
    page = capsys.readouterr().out.replace("\\", "").partition(f".SS {command}\n")[2].partition("\n.SS ")[0]
    places = [page.index(f".I {title}\n") for title in expected]
    assert places == sorted(places)


def test_flags_become_settings(served) -> None:
    flags = "--port 0 --served-model-name a --served-model-name b --no-prefix-cache --dtype float32 --kv-cache-gib 0.5"
    assert run("serve", "some/folder", *flags.split()) == 0
    (settings,) = served
    assert settings == EngineSettings(
        model="some/folder",
        port=0,
        served_model_name=["a", "b"],
        prefix_cache=False,
        dtype="float32",
        kv_cache_gib=0.5,
    )


def test_endpoints_may_be_repeated(routed) -> None:
    assert run("route", "--endpoint", "http://a:1", "--endpoint", "http://b:2,backend=vllm") == 0
    assert routed[0].endpoint == ["http://a:1", "http://b:2,backend=vllm"]


def test_sampling_defaults_are_read_from_a_flag_or_a_variable_and_reach_the_engine_process(served, monkeypatch) -> None:
    monkeypatch.setenv("HEADWATER_ENGINE_OVERRIDE_GENERATION_CONFIG", '{"top_p": 0.9}')
    assert run("serve", "x") == 0
    assert run("serve", "x", "--override-generation-config", '{"temperature": 0.2, "top_k": null}') == 0
    monkeypatch.undo()
    defaults = [settings.override_generation_config for settings in served]
    assert defaults == [SamplingDefaults(top_p=0.9), SamplingDefaults(temperature=0.2)]
    for settings in served:
        assert EngineSettings.model_validate_json(settings.model_dump_json()) == settings


def test_a_flag_wins_over_its_variable(served, monkeypatch) -> None:
    monkeypatch.setenv("HEADWATER_ENGINE_MODEL", "from/variable")
    monkeypatch.setenv("HEADWATER_ENGINE_PORT", "1111")
    monkeypatch.setenv("HEADWATER_ENGINE_SERVED_MODEL_NAME", '["a", "b"]')
    assert run("serve") == 0
    assert run("serve", "from/flag", "--port", "2222") == 0
    assert [(each.model, each.port, each.served_model_name) for each in served] == [
        ("from/variable", 1111, ["a", "b"]),
        ("from/flag", 2222, ["a", "b"]),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["up"], "headwater up: FILE is missing; see headwater up --help"),
        (["up", "x", "--port", "70000"], "must be a port from 0 to 65535, found '70000'"),
        (["serve"], "headwater serve: MODEL: is required"),
        (["serve", "x", "--port", "abc"], 'headwater serve: --port: must be a whole number, found "abc"'),
        (["serve", "x", "--kv-cache-gib", "0"], 'headwater serve: --kv-cache-gib: must be greater than 0, found "0"'),
        (["serve", "x", "--dtype", "int4"], "--dtype must be auto, bfloat16, float16, float32; found 'int4'"),
        (["serve", "x", "--prot", "8000"], "headwater serve: unknown argument --prot; did you mean --port?"),
        (["serve", "x", "--max-model", "8"], "did you mean --max-model-len?"),
        (["serve", "x", "--max-batched-tokens", "2"], "--max-batched-tokens (2) must be at least --max-num-seqs (64)"),
        (
            ["serve", "x", "--override-generation-config", '{"temprature": 3}'],
            "headwater serve: --override-generation-config: unknown field `temprature`; did you mean `temperature`?",
        ),
        (
            ["serve", "x", "--override-generation-config", '{"top_k": 20, "temperature": 3}'],
            "--override-generation-config: `temperature` must be less than or equal to 2, found 3",
        ),
        (["serve", "x", "--tensor-parallel-size", "3", "--nodes", "2"], "(3) must be a multiple of --nodes (2)"),
        (["serve", "x", "--tensor-parallel-size", "1025"], "(1025) is 1025 ranks on a node: 64 at most"),
        (["serve", "x", "--nodes", "1", "--node-rank", "1"], "--node-rank (1) must be below --nodes (1)"),
        (["serve", "x", "--tensor-parallel-size", "2", "--nodes", "2"], "--leader must be HOST:PORT of node 0"),
        (["serve", "x", "--override-generation-config", "[1]"], "must be a JSON object, such as"),
        (["serve", "x", "--override-generation-config", "[" * 9999], "--override-generation-config: is not JSON: "),
        (["route"], "headwater route: there is nothing to route to: give --endpoint or --endpoints-file"),
        (["route", "--endpoint", "engine-1"], "must be http://HOST[:PORT][/PATH] or https://..., found 'engine-1'"),
    ],
)
def test_a_wrong_argument_is_named_in_one_sentence(arguments: Sequence[str], message: str, capsys) -> None:
    assert run(*arguments) == USAGE_ERROR
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("HEADWATER_ENGINE_PORT", "abc", 'HEADWATER_ENGINE_PORT: must be a whole number, found "abc"'),
        (
            "HEADWATER_ENGINE_DTYPE",
            "int4",
            "HEADWATER_ENGINE_DTYPE: must be 'auto', 'bfloat16', 'float16' or 'float32'",
        ),
        (
            "HEADWATER_ENGINE_OVERRIDE_GENERATION_CONFIG",
            '{"min_p": -1}',
            "HEADWATER_ENGINE_OVERRIDE_GENERATION_CONFIG: `min_p` must be greater than or equal to 0, found -1",
        ),
        ("HEADWATER_ENGINE_SERVED_MODEL_NAME", "a", "HEADWATER_ENGINE_SERVED_MODEL_NAME: must be a JSON list"),
    ],
)
def test_a_wrong_variable_is_named(variable: str, value: str, message: str, capsys, monkeypatch) -> None:
    monkeypatch.setenv(variable, value)
    assert run("serve", "x") == USAGE_ERROR
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("HEADWATER_ROUTER_API_KEY", "; did you mean HEADWATER_ROUTER_API_KEYS?"),
        ("HEADWATER_ROUTER_APIKEYS", "; did you mean HEADWATER_ROUTER_API_KEYS?"),
        ("HEADWATER_ROUTER_ADMIN_PROT", "; did you mean HEADWATER_ROUTER_ADMIN_PORT?"),
        ("headwater_router_api_key", "; did you mean HEADWATER_ROUTER_API_KEYS?"),
        ("HEADWATER_ROUTER_XYZZY", ""),
    ],
)
def test_a_misspelled_variable_does_not_start_a_router_without_it(name, hint, routed, capsys, monkeypatch) -> None:
    monkeypatch.setenv(name, "x")
    assert run("route", "--endpoint", "http://a:1") == USAGE_ERROR
    assert capsys.readouterr().err == f"headwater route: unknown variable {name.upper()}{hint}\n"
    assert routed == []


@pytest.mark.parametrize(
    "name", ["SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT_80_TCP", "PORT_80_TCP_ADDR", "B_SERVICE_HOST"]
)
def test_what_kubernetes_sets_for_services_is_no_setting(name: str, routed, monkeypatch) -> None:
    monkeypatch.setenv(f"HEADWATER_ROUTER_{name}", "10.0.0.1")
    assert run("route", "--endpoint", "http://a:1") == 0
    assert len(routed) == 1


def test_a_missing_file_is_an_error_without_traceback(capsys, tmp_path) -> None:
    assert run("up", str(tmp_path / "none.yaml")) == 1
    assert "cannot be read: No such file or directory" in capsys.readouterr().err


def test_bash_completes_commands_flags_models_and_files() -> None:
    script = f"""
        eval "$({sys.executable} -m headwater completion bash)"
        COMP_WORDS=(headwater serve --max-n); COMP_CWORD=2; _shtab_headwater; echo "${{COMPREPLY[@]}}"
        COMP_WORDS=(headwater ro); COMP_CWORD=1; _shtab_headwater; echo "${{COMPREPLY[@]}}"
        COMP_WORDS=(headwater serve random:ti); COMP_CWORD=2; _shtab_headwater; echo "${{COMPREPLY[@]}}"
        COMP_WORDS=(headwater serve pyproj); COMP_CWORD=2; _shtab_headwater; echo "${{COMPREPLY[@]}}"
    """
    answer = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["--max-num-seqs", "route", "random:tiny", "pyproject.toml"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_every_command(shell: str, capsys) -> None:
    assert run("completion", shell) == 0
    script = capsys.readouterr().out
    assert all(command in script for command in COMMANDS)


def test_a_file_gives_what_neither_flags_nor_variables_do(served, tmp_path, monkeypatch) -> None:
    file = tmp_path / "engine.yaml"
    file.write_text(
        "model: from/file\nport: 1\nmax-model-len: 64\nserved-model-name: [a, b]\nprefix-cache: false\n"
        "override-generation-config: {temperature: 0.5}\n"
    )
    monkeypatch.setenv("HEADWATER_ENGINE_MAX_MODEL_LEN", "128")
    assert run("serve", "--config", str(file), "--port", "2") == 0
    assert served == [
        EngineSettings(
            model="from/file",
            port=2,
            max_model_len=128,
            served_model_name=["a", "b"],
            prefix_cache=False,
            override_generation_config=SamplingDefaults(temperature=0.5),
        )
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prot: 1", "there is no setting 'prot'; did you mean port?"),
        ("port: x", 'port: must be a whole number, found "x"'),
        ("- port", "must hold settings, such as `port: 8000`"),
        ("a: b: c", "is not YAML"),
    ],
)
def test_what_is_wrong_in_a_file_of_settings_is_named_with_it(text: str, message: str, tmp_path, capsys) -> None:
    file = tmp_path / "engine.yaml"
    file.write_text(text)
    assert run("serve", "x", "--config", str(file)) == USAGE_ERROR
    said = capsys.readouterr().err
    assert str(file) in said and message in said
    assert run("serve", "x", "--config", str(tmp_path / "none")) == USAGE_ERROR
    assert "cannot be read: No such file or directory" in capsys.readouterr().err


def test_the_manual_page_names_every_flag_and_no_text_is_a_command_of_roff(capsys) -> None:
    assert run("man") == 0
    page = capsys.readouterr().out
    for settings in (EngineSettings, RouterSettings):
        for name in settings.model_fields.keys() - {"model"}:
            assert f"--{flag(name)}".replace("-", "\\-") in page
    macros = {line.split()[0] for line in page.splitlines() if line.startswith((".", "'"))}
    assert macros == {".TH", ".SH", ".SS", ".PP", ".TP", ".B", ".I"}
