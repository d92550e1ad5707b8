# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What is needed is listed once: the execution environment, the package and CI must ask for the same as those lists."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
LISTS = ("requirements.txt", "requirements.yml", "bindep.txt")


def lines(path: Path) -> list[str]:
    """The entries of a list, without comments."""
    return [line for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]


def needed(name: str) -> str:
    """The line of a package in requirements.txt."""
    return next(line for line in lines(ROOT / "requirements.txt") if re.match(rf"{name}\b(?!-)", line))


def load(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text())


@pytest.fixture(scope="module", name="context")
def _context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `ansible-builder build` would hand to podman."""
    context = tmp_path_factory.mktemp("context")
    command = ["ansible-builder", "create", "--file", str(ROOT / "execution-environment.yml"), "--context", str(context),
               "--output-filename", "Containerfile"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return context


@pytest.mark.parametrize("name", LISTS)
def test_the_execution_environment_installs_what_the_lists_say(context: Path, name: str) -> None:
    assert (context / "_build" / name).read_text() == (ROOT / name).read_text()
    assert re.search(rf"\b{re.escape(name)}\b", (context / "Containerfile").read_text())


def test_the_execution_environment_has_the_same_core_and_runner(context: Path) -> None:
    installed = re.search(r'^ARG ANSIBLE_INSTALL_REFS="(.*)"$', (context / "Containerfile").read_text(), re.M)
    assert installed and installed[1].split() == [needed("ansible-core"), needed("ansible-runner")]


def test_whoever_puts_the_collection_into_an_environment_gets_its_needs(tmp_path: Path) -> None:
    home = tmp_path / "ansible_collections" / "elearning"
    home.mkdir(parents=True)
    (home / "moodle_fleet").symlink_to(ROOT)
    done = subprocess.run(["ansible-builder", "introspect", str(tmp_path)], capture_output=True, text=True, check=True)
    found = yaml.safe_load(done.stdout)
    # Core and runner are the environment's own.
    core = (needed("ansible-core"), needed("ansible-runner"))
    ours = {re.sub(r"\s*#.*", "", line) for line in found["python"]}
    assert ours | set(core) == set(lines(ROOT / "requirements.txt"))
    assert {line.split()[0] for line in found["system"]} >= {"git", "openssh-clients"}


def test_a_system_of_red_hats_kind_gets_git_and_ssh_and_nothing_of_debians() -> None:
    from bindep.depends import Depends

    rules = Depends((ROOT / "bindep.txt").read_text()).active_rules(["platform:rpm", "platform:centos"])
    assert {rule[0] for rule in rules} == {"git", "openssh-clients"}
    debian = {rule[0] for rule in Depends((ROOT / "bindep.txt").read_text()).active_rules(["platform:dpkg"])}
    assert debian == {"git", "openssh-client", "python3-venv"}


def test_the_collection_depends_on_the_collections_of_the_list() -> None:
    wanted = {entry["name"]: entry["version"] for entry in load("requirements.yml")["collections"]}
    assert wanted == load("galaxy.yml")["dependencies"]


def test_the_command_and_the_collection_support_the_same_core() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert needed("ansible-core") in project["optional-dependencies"]["run"]
    assert set(project["dependencies"]) - set(lines(ROOT / "requirements.txt")) <= {"PyYAML>=6"}
    oldest = re.search(r">=([\d.]+)", needed("ansible-core"))
    assert oldest and load("meta/runtime.yml")["requires_ansible"].startswith(f">={oldest[1]}")


def test_ci_tries_the_oldest_and_the_newest_core_with_steps_that_exist() -> None:
    jobs = load(".github/workflows/ci.yml")["jobs"]
    cores = [entry["core"] for entry in jobs["code"]["strategy"]["matrix"]["include"]]
    bounds = re.fullmatch(r"ansible-core>=2\.(\d+),<2\.(\d+)", needed("ansible-core"))
    assert bounds and cores == [f"2.{bounds[1]}", f"2.{int(bounds[2]) - 1}"]
    steps = [words for job in jobs.values() for step in job["steps"] for words in re.findall(r"scripts/test (.+)", step.get("run", ""))]
    known = set(re.findall(r"^run_(\w+)\(\)", (ROOT / "scripts" / "test").read_text(), re.M))
    assert {word for words in steps for word in words.split()} == known
