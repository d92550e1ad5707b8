# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the command promises to people and to scripts: help, exit codes, data, colours, completion."""

from __future__ import annotations

import argparse
import errno
import json
import os
import pty
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._balancers.base import BalancerError
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._clouds.base import CloudError
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._fleet import FleetFileError
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._ledger import LedgerError, Locked, Superseded
from ansible_collections.elearning.moodle_fleet.trigger import cli, metrics, output, usage

ROOT = Path(__file__).parents[3]
COMMAND = [sys.executable, "-m", "ansible_collections.elearning.moodle_fleet.trigger"]
FLEET_FILE = """
plugin: elearning.moodle_fleet.fleet
fleet: usage
state_dir: state
cloud: {driver: podman}
"""


def commands() -> dict[str, argparse.ArgumentParser]:
    parser = cli._parser()
    (action,) = (one for one in parser._actions if isinstance(one, argparse._SubParsersAction))
    return dict(action.choices)


@pytest.fixture(name="fleet_file")
def _fleet_file(tmp_path: Path) -> Path:
    file = tmp_path / "moodle_fleet.yml"
    file.write_text(FLEET_FILE)
    return file


@pytest.mark.parametrize("name", commands())
def test_every_example_of_the_help_can_be_run_as_it_stands(name: str) -> None:
    text = commands()[name].format_help()
    examples = re.findall(r"^  \$ (.+)$", text, re.M)
    assert examples, text
    for line in examples:
        program, *arguments = shlex.split(line)
        assert program == "moodle-fleet" and arguments[0] == name
        cli._parser().parse_args(arguments)


def test_no_example_is_left_of_a_command_that_is_gone() -> None:
    assert set(usage.EXAMPLES) <= set(commands())


@pytest.mark.parametrize("name", commands())
def test_every_command_gives_data(name: str) -> None:
    options = [option for action in commands()[name]._actions for option in action.option_strings]
    assert "--json" in options
    assert all(action.help for action in commands()[name]._actions), "each argument says what it is for"


def test_the_help_and_the_documents_name_every_exit_code() -> None:
    text = cli._parser().format_help()
    for code, meaning in usage.EXIT_CODES.items():
        assert re.search(rf"^ +{code}  {re.escape(meaning)}$", text, re.M)
        assert f"| {code} | {meaning} |" in (ROOT / "docs" / "command.md").read_text()


def fault(exception: BaseException) -> Callable[..., int]:
    def command(*_arguments: object) -> int:
        raise exception

    return command


@pytest.mark.parametrize(("exception", "code"), [
    (cli.Wrong("no such check"), 2),
    (FleetFileError("f.yml", "no"), 3), (LedgerError("no"), 3), (PermissionError(errno.EACCES, "Permission denied", "/srv/state"), 3),
    (CloudError("no answer"), 4), (BalancerError("no answer"), 4),
    (Locked("another check"), 6), (Superseded("another plan"), 6),
    (KeyboardInterrupt(), 130),
])
def test_what_goes_wrong_is_one_sentence_and_an_exit_code(
    exception: BaseException, code: int, fleet_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "_status", fault(exception))
    assert cli.main(["status", "--fleet", str(fleet_file), "--json"]) == code
    out, err = capsys.readouterr()
    assert err.startswith("moodle-fleet: ") and err.count("\n") == 1
    assert json.loads(out) == {"error": err.removeprefix("moodle-fleet: ").strip(), "exit_code": code}
    assert code in usage.EXIT_CODES


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False, env={**os.environ, **environment})


@pytest.mark.parametrize(("arguments", "code", "says"), [
    (["status"], 2, "name the fleet file by --fleet or MOODLE_FLEET_FILE"),
    (["status", "--fleet", "/nowhere.yml"], 3, "/nowhere.yml: can't be read"),
    ([], 2, "the following arguments are required: COMMAND; 'moodle-fleet --help' has examples"),
    (["frobnicate"], 2, "invalid choice: 'frobnicate'; use one of: check, status"),
    (["chek"], 2, "invalid choice: 'chek'; did you mean 'check'?"),
    (["tenants"], 2, "required: action; 'moodle-fleet tenants --help' has examples"),
    (["tenants", "restor", "--fleet", "{}"], 2, "did you mean 'restore'?"),
    (["check", "--desired", "-1", "--fleet", "{}"], 2, "--desired: '-1': give a whole number, 0 or more"),
    (["history", "-n", "0", "--fleet", "{}"], 2, "'0': give a whole number, 1 or more"),
    (["events", "--fleet", "{}"], 3, "events: is missing: say 'events: {tenants: true}'"),
    (["metrics", "--out", "x.txt", "--fleet", "{}"], 2, "--out x.txt: give a name that ends in .prom"),
    (["metrics", "--listen", "x", "--fleet", "{}"], 2, "--listen 'x': write host:port"),
    (["notify", "--test", "--fleet", "{}"], 5, "the fleet file names no channel"),
    (["check", "--timeout", "-1", "--fleet", "{}"], 2, "give a number from 1 to 604800"),
    (["explain", "12", "--fleet", "{}"], 2, "the ledger knows no check 12; 'moodle-fleet history --all' lists"),
    (["simulate", "--trace", "/nowhere.csv", "--fleet", "{}"], 2, "/nowhere.csv"),
    (["tenants", "restore", "--fleet", "{}"], 2, "name the one tenant to restore"),
    (["pause", "--for", "soon", "--fleet", "{}"], 2, "'soon' is no duration; give for example 30m or 12h"),
])
def test_a_mistake_gets_no_traceback(arguments: list[str], code: int, says: str, fleet_file: Path) -> None:
    done = run(*[argument.replace("{}", str(fleet_file)) for argument in arguments], MOODLE_FLEET_FILE="")
    assert done.returncode == code, done.stderr
    assert says in done.stderr and "Traceback" not in done.stderr
    assert done.stderr.startswith("moodle-fleet: ") and done.stderr.count("\n") == 1 and not done.stdout
    told = run(*[argument.replace("{}", str(fleet_file)) for argument in arguments], "--json", MOODLE_FLEET_FILE="")
    if arguments and code != 5:
        assert json.loads(told.stdout) == {"error": done.stderr.removeprefix("moodle-fleet: ").strip(), "exit_code": code}


def test_the_version_is_that_of_the_collection(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert f"version: {capsys.readouterr().out.split()[1]}\n" in (ROOT / "galaxy.yml").read_text()


def test_the_package_has_all_that_the_command_imports() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    there = {file.parent.relative_to(ROOT) for folder in settings["package-dir"].values() for file in (ROOT / folder).rglob("__init__.py")}
    there |= {Path(folder) for folder in settings["package-dir"].values()}
    collection = "ansible_collections.elearning.moodle_fleet."
    assert {one.removeprefix(collection) for one in settings["packages"]} == {".".join(path.parts) for path in there}


def test_metrics_are_data_too(fleet_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["metrics", "--fleet", str(fleet_file), "--json"]) == 0
    found = {(one["name"], *one["labels"].items()): one["value"] for one in json.loads(capsys.readouterr().out)["series"]}
    assert found[("moodle_fleet_nodes_min", ("fleet", "usage"))] == 2
    assert found[("moodle_fleet_paused", ("fleet", "usage"), ("scope", "in"))] == 0
    assert cli.main(["metrics", "--fleet", str(fleet_file), "--out", str(tmp_path / "x.prom")]) == 0
    assert capsys.readouterr().out == "" and len(metrics.series((tmp_path / "x.prom").read_text())) == len(found)


def test_a_state_folder_that_cannot_be_made_is_named(fleet_file: Path) -> None:
    (fleet_file.parent / "state").write_text("a file where the folder should be")
    done = run("pause", "--fleet", str(fleet_file))
    assert done.returncode == 3 and "Traceback" not in done.stderr
    assert str(fleet_file.parent / "state") in done.stderr


def on_a_terminal(monkeypatch: pytest.MonkeyPatch, **environment: str) -> str:
    """What a table of phases looks like on a terminal."""
    code = f"from {output.__name__} import table; table('Web nodes', ('node', 'phase'), [('w1', 'in_service'), ('w2', 'sick')])"
    monkeypatch.delenv("NO_COLOR", raising=False)
    master, slave = pty.openpty()
    with subprocess.Popen([sys.executable, "-c", code], stdout=slave, env={**os.environ, "TERM": "xterm", **environment}) as process:
        process.wait(30)
    os.close(slave)
    return os.read(master, 65536).decode()


COLOUR = re.compile(r"\x1b\[[0-9;]*\b(3[0-7]|9[0-7])m")


def test_colours_are_for_terminals_and_can_be_switched_off(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert COLOUR.search(on_a_terminal(monkeypatch))
    assert not COLOUR.search(on_a_terminal(monkeypatch, NO_COLOR="1"))
    output.table("Web nodes", ("node", "phase"), [("w1", "in_service")])
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_is_told_how_to_complete(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", shell]) == 0
    assert "moodle-fleet" in capsys.readouterr().out


def test_bash_completes_commands_and_options(tmp_path: Path) -> None:
    program = tmp_path / "moodle-fleet"
    program.write_text(f'#!/bin/sh\nexec {shlex.join(COMMAND)} "$@"\n')
    program.chmod(0o755)
    script = f"""
        eval "$({program} completion bash)"
        for line in 'moodle-fleet sta' 'moodle-fleet tenants re' 'moodle-fleet pause --in'; do
          COMP_LINE=$line COMP_POINT=${{#line}} COMP_TYPE=9 COMP_WORDS=($line) COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
          _python_argcomplete moodle-fleet
          echo ${{COMPREPLY[@]}}
        done
    """
    done = subprocess.run(
        ["bash", "--norc", "-c", script], capture_output=True, text=True, check=False,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )
    assert done.stdout.split() == ["status", "restore", "--in-only"], done.stderr
