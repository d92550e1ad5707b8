# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Every example of the documentation: its command is taken by the real parser, its playbook, variables and files exist, its YAML is valid.

What a command then does is tried elsewhere: those of `moodle-fleet` in tests/unit/trigger, playbooks in tests/integration and by `scripts/demo`.
What is not ours, and therefore not looked at, stands in NOT_OURS.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.cli.playbook import PlaybookCLI

from ansible_collections.elearning.moodle_fleet.plugins.module_utils import _fleet
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants import definition
from ansible_collections.elearning.moodle_fleet.trigger.cli import _parser

ROOT = Path(__file__).parents[3]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "roles").glob("*/README.md"), ROOT / "tests" / "README.md"])
# Programs of others, and of a shell.
NOT_OURS = {
    "ansible-rulebook", "ansible-vault", "cat", "cd", "cp", "curl", "export", "git", "gzip", "journalctl", "mariadb-dump", "molecule", "pip", "pytest",
    "python3",
}
# First keys of other programs' files: Alertmanager's, a rulebook's action.
NOT_OUR_KEYS = {"receivers", "route", "run_job_template"}
# Placeholders for what a reader has; the inventories that they stand for are in the repository.
INVENTORIES = {"inventories/prod": "inventories/aws", "localhost,": "inventories/local"}

# Named, and made by those who are told of it.
MADE = {"tests/benchmarks/results"}


@dataclass(frozen=True)
class Example:
    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def examples() -> list[Example]:
    """Every fenced block of the pages."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            found.append(Example(str(page.relative_to(ROOT)), text[: match.start()].count("\n") + 2, match[1], match[2]))
    return found


EXAMPLES = examples()


def commands(example: Example) -> list[list[str]]:
    """The single commands of a console example, without what they are piped to and where their output goes."""
    found: list[list[str]] = []
    for line in example.text.replace("\\\n", " ").splitlines():
        prompt = re.match(r"[a-z]*\$ ", line)
        if not prompt:
            continue  # what a command prints, or reads
        lexer = shlex.shlex(line[prompt.end():], posix=True, punctuation_chars="|&><")
        lexer.whitespace_split = True
        word: list[str] = []
        tokens = iter(lexer)
        for token in tokens:
            if token in ("|", "&&"):
                found.append(word)
                word = []
            elif token[0] in "<>":
                next(tokens)
            elif word or not re.match(r"[A-Za-z_]+=", token):
                word.append(token)
        found.append(word)
    return [one for one in found if one]


COMMANDS = [pytest.param(words, id=f"{example} {' '.join(words)}") for example in EXAMPLES if example.language == "console" for words in commands(example)]


def specified() -> dict[str, dict[str, Any]]:
    """Every role's variables with their specification."""
    found = {}
    for path in (ROOT / "roles").glob("*/meta/argument_specs.yml"):
        for point in yaml.safe_load(path.read_text())["argument_specs"].values():
            found.update(point.get("options") or {})
    return found


VARIABLES = specified()


def known_variable(name: str, playbook: Path | None = None) -> bool:
    """Whether a role, the playbook or what joins roles to a fleet reads a variable of this name."""
    sources = [playbook] if playbook else []
    sources += [*(ROOT / "playbooks").glob("group_vars/all/*.yml"), *(ROOT / "inventories").glob("*/group_vars/all/*.yml")]
    word = re.compile(rf"\b{re.escape(name)}\b")
    return name in VARIABLES or any(word.search(path.read_text(encoding="utf-8")) for path in sources)


def test_there_are_examples_and_each_has_a_language() -> None:
    assert len(COMMANDS) > 50
    for example in EXAMPLES:
        assert example.language in ("", "console", "yaml", "text"), example
        if not example.language:
            assert not re.search(r"^(\$ |scripts/|moodle-fleet |ansible)", example.text, re.MULTILINE), f"{example}: mark it as console"
        assert example.language != "console" or commands(example), f"{example}: no command after '$ '"


@pytest.mark.parametrize("words", COMMANDS)
def test_a_command_can_be_given_as_it_stands(words: list[str]) -> None:
    program, *arguments = words
    if program in ("moodle-fleet", "scripts/moodle-fleet"):
        _parser().parse_args(arguments)
    elif program == "ansible-playbook":
        check_playbook(words)
    elif program.startswith("scripts/"):
        check_script(program, arguments)
    else:
        assert program in NOT_OURS, f"{program}: unknown; check it here, or say that it is not ours"


def check_playbook(words: list[str]) -> None:
    cli = PlaybookCLI(words)
    cli.init_parser()
    given = cli.parser.parse_args(words[1:])
    assert given.args
    for name in given.args:
        assert (ROOT / name).is_file(), name
        for extra in given.extra_vars:
            if extra.startswith("@"):
                continue  # a file of the reader's
            value = yaml.safe_load(extra) if extra.startswith("{") else dict(pair.split("=", 1) for pair in shlex.split(extra)[:1])
            assert isinstance(value, Mapping)
            for key in value:
                assert known_variable(key, ROOT / name), f"{name} knows no variable {key}"
    for inventory in given.inventory or []:
        assert (ROOT / INVENTORIES.get(inventory, inventory)).is_dir(), inventory


def check_script(program: str, arguments: list[str]) -> None:
    script = ROOT / program
    assert script.stat().st_mode & 0o100, f"{program} can't be executed"
    text = script.read_text(encoding="utf-8")
    for name in re.findall(r"\$root/([\w/.-]+[.]py)", text):
        text += (ROOT / name).read_text(encoding="utf-8")
    previous = ""
    for argument in arguments:
        # A value after an option is the option's to judge.
        if argument.startswith("--") or not previous.startswith("--"):
            assert re.search(rf"(?<![\w-]){re.escape(argument)}(?![\w-])", text.replace("run_", " ")), f"{program} knows no {argument}"
        previous = argument


# -- YAML -------------------------------------------------------------------------------------------------------------


class Loader(yaml.SafeLoader):
    """Reads examples: a vaulted text is a text."""


Loader.add_constructor("!vault", lambda loader, node: loader.construct_scalar(node))

MACHINE = {"address": "192.0.2.{}", "host_key": "ssh-ed25519 AAAA", "roles": ["web", "builder"]}
# What an example of a part is completed with.
BASE = {"plugin": _fleet.PLUGIN, "fleet": "example", "cloud": {"driver": "podman"}}


def completed(values: Mapping[str, Any]) -> dict[str, Any]:
    """A part of a fleet file made whole: with a name and a cloud, and a pool large enough where one machine was shown."""
    whole = {**BASE, **values}
    if whole["cloud"]["driver"] == "static":
        tiers = ["balancer", "database", "cache", "jobs", "logs", *["web"] * 8]
        more = [{"name": f"more-{i}", "address": f"192.0.2.{100 + i}", "host_key": MACHINE["host_key"], "roles": [role]} for i, role in enumerate(tiers)]
        whole["cloud"] = {**whole["cloud"], "pool": [*whole["cloud"]["pool"], *more]}
    return whole


def check_play(item: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with a play, or with an entry of `roles`."""
    roles = [item] if "role" in item else item.get("roles") or []
    for entry in roles:
        name = entry["role"].removeprefix("elearning.moodle_fleet.")
        if not (ROOT / "roles" / name).is_dir():
            yield f"no role {entry['role']}"
        given = {**(entry.get("vars") or {}), **{key: value for key, value in entry.items() if key not in ("role", "vars", "tags", "when")}}
        yield from (f"role {name} has no variable {key}" for key in given if key not in VARIABLES or not key.startswith(f"{name}_"))
    for task in item.get("tasks") or []:
        for key, arguments in task.items():
            if key.startswith("elearning.moodle_fleet."):
                module = ROOT / "plugins" / "modules" / f"{key.rpartition('.')[2]}.py"
                text = module.read_text(encoding="utf-8") if module.is_file() else ""
                yield from (f"{key} has no option {option}" for option in arguments if f"\n  {option}:\n" not in text)


@pytest.mark.parametrize("example", [one for one in EXAMPLES if one.language == "yaml"], ids=str)
def test_yaml_is_what_the_code_takes(example: Example, tmp_path: Path) -> None:
    # Ids and keys are shortened.
    values = yaml.load(example.text.replace("…", "0"), Loader)
    if isinstance(values, list):
        assert [problem for item in values for problem in check_play(item)] == []
    elif values.keys() & _fleet.TOP.keys():
        _fleet.validate(completed(values), tmp_path / "moodle_fleet.yml")
    else:
        assert [key for key in values if key not in NOT_OUR_KEYS and not known_variable(key)] == []
        shown = values.get("moodle_tenants", [])
        assert len(definition.load(shown)) == len(shown)


# -- what is named in a line -------------------------------------------------------------------------------------------


def named(pattern: str) -> Iterator[tuple[str, str]]:
    """(page, text) of everything between backticks that matches, outside of examples."""
    for page in PAGES:
        text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        for found in re.findall(r"`([^`\n]+)`", text):
            if re.fullmatch(pattern, found):
                yield str(page.relative_to(ROOT)), found


def test_files_that_are_named_exist() -> None:
    lost = [
        (page, path) for page, path in named(r"(?:scripts|playbooks|roles|tests|plugins|trigger|extensions|inventories)/[\w./-]+")
        if not (ROOT / INVENTORIES.get(path, path)).exists() and path not in MADE
    ]
    assert lost == []


def test_scripts_with_arguments_that_are_named_exist() -> None:
    found = [(page, shlex.split(line)) for page, line in named(r"scripts/(?:bench|test|load|docs) [\w .,=/*-]+")]
    assert len(found) > 20
    for _page, (program, *arguments) in found:
        check_script(program, arguments)


def test_variables_of_roles_that_are_named_exist() -> None:
    roles = "|".join(path.name for path in (ROOT / "roles").iterdir())
    sources = [path for folder in ("playbooks", "plugins", "roles", "inventories") for path in (ROOT / folder).rglob("*.*")]
    words = {
        word for path in sources if path.suffix in (".yml", ".py", ".j2") for word in re.findall(r"\w+", path.read_text(encoding="utf-8"))
    }
    found = [one for one in named(rf"(?:{roles}|moodle)_[a-z_]+") if not one[1].startswith("moodle_jobs_")]  # those are metrics
    assert len(found) > 50
    assert [(page, name) for page, name in found if name not in words] == []


def test_defaults_that_are_told_are_the_code_s() -> None:
    told = re.findall(r"^\| `(\w+)` \| ([\w.]+)(?::[^|]*)? \|", (ROOT / "docs" / "tuning.md").read_text(), re.MULTILINE)
    ours = [(name, default) for name, default in told if name in VARIABLES]
    assert len(ours) > 10
    assert [(name, default, VARIABLES[name]["default"]) for name, default in ours if str(VARIABLES[name]["default"]) != default] == []
