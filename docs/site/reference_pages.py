# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Reference pages of the documentation site, as Markdown, made from the sources themselves.

A page never says what the code does not: keys of the fleet file come from the fields that check it, the command's options from its
parser, modules and roles from their specifications, playbooks from their heads and plays.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import subprocess
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from antsibull_docs_parser import dom
from antsibull_docs_parser.format import LinkProvider
from antsibull_docs_parser.md import to_md
from antsibull_docs_parser.parser import Context, parse

from ansible_collections.elearning.moodle_fleet.plugins.module_utils import _fleet
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.policy import SCHEDULE_KEYS, policy_schema
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._schema import Field
from ansible_collections.elearning.moodle_fleet.trigger import usage
from ansible_collections.elearning.moodle_fleet.trigger.cli import _parser

COLLECTION = "elearning.moodle_fleet"
KINDS = ("role", "module", "inventory", "filter")
_VARIABLE = re.compile(r"^\s+([a-z_]+(?:, [a-z_]+)*)\s{2,}(\S.*)$")


def _cell(text: str) -> str:
    return re.sub(r"(?<!\\)[|]", r"\\|", " ".join(text.split()))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; nothing where there are no rows."""
    lines = ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows]
    if not lines:
        return ""
    return "\n".join(["| " + " | ".join(head) + " |", "|" + " --- |" * len(head), *lines]) + "\n"


def code(text: object) -> str:
    """Text as it is written, in a line."""
    shown = text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)
    return f"`{shown}`" if shown else "empty"


# -- the fleet file ---------------------------------------------------------------------------------------------------

_TYPES = {str: "text", int: "whole number", float: "number", bool: "true or false", list: "list", dict: "mapping"}


def _limits(low: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f"{low:g} to {high:g}"
    return f"at least {low:g}" if low is not None else f"at most {high:g}" if high is not None else ""


def _field_row(key: str, field: Field) -> list[str]:
    # What a list holds is what each of its items must be.
    one = field.items if field.items is not None and field.items.fields is None else field
    kind = _TYPES[field.kind] + (f" of {_TYPES[one.kind]}s" if one is not field and one.kind is not str else "")
    bounds = "one of " + ", ".join(map(code, one.choices)) if one.choices else _limits(one.minimum, one.maximum)
    if not bounds and one.pattern:
        bounds = "as " + code(one.pattern)
    if field.required:
        default = "required"
    else:
        default = "none" if field.default is None or field.default in ("", [], {}) else code(field.default)
    return [code(key), kind, default, bounds, field.help]


def field_rows(prefix: str, fields: Mapping[str, Field]) -> Iterator[list[str]]:
    """A row for every key, those below it after it."""
    for name, field in fields.items():
        key = f"{prefix}{name}"
        yield _field_row(key, field)
        if field.fields:
            yield from field_rows(f"{key}.", field.fields)
        if field.items is not None and field.items.fields:
            yield from field_rows(f"{key}[].", field.items.fields)


def fleet_file() -> str:
    """The page of `moodle_fleet.yml`."""
    head = ("key", "type", "default", "bounds", "meaning")
    inherited = [name for name, field in _fleet.TOP.items() if not field.help]
    parts = [
        "# The fleet file",
        "`inventories/ENVIRONMENT/moodle_fleet.yml` is the inventory source and what the command reads. What is wrong in it is said in one "
        "message that names file, key, value and remedy, before anything is contacted. Secrets do not belong here.",
        "## Sections",
        table(head, (_field_row(name, field) for name, field in _fleet.TOP.items() if field.help)),
        "Ansible's own options of inventory plugins are taken as well: " + ", ".join(map(code, inherited)) + ".",
    ]
    for section, drivers in (("cloud", _fleet.CLOUDS), ("balancer", _fleet.BALANCERS)):
        for name, driver in drivers.items():
            parts += [f"## `{section}`, driver `{name}`", table(head, field_rows("", driver().SETTINGS))]
    parts += ["## `services`", "Each service is a mapping of its own; left out, it has its defaults."]
    for name, field in _fleet.SERVICES.items():
        parts += [f"### `services.{name}`", f"{field.help[:1].upper()}{field.help[1:]}." if field.help else "", table(head, field_rows("", field.fields or {}))]
    rows = [
        [code(key), setting.kind if not setting.choices or setting.kind == "choice" else f"{setting.kind} or a word",
         "derived" if setting.default is None else "none" if setting.default == () else code(setting.default),
         ", ".join(filter(None, (_limits(setting.low, setting.high), ", ".join(map(code, setting.choices))))), setting.help]
        for key, setting in policy_schema().items()
    ]
    parts += [
        "## `scaling`", table(head, rows),
        "An entry of `schedule` has the keys " + ", ".join(map(code, SCHEDULE_KEYS)) + ". Why the defaults are what they are: "
        "[Scaling](../docs/scaling.md).",
    ]
    for name in ("events", "costs", "metrics", "notifications"):
        parts += [f"## `{name}`", table(head, field_rows("", _fleet.TOP[name].fields or {}))]
    return "\n\n".join(part for part in parts if part) + "\n"


# -- the command ------------------------------------------------------------------------------------------------------


def _argument(action: argparse.Action, prog: str) -> list[str]:
    name = ", ".join(action.option_strings) or str(action.metavar or action.dest)
    value = ""
    if action.option_strings and action.nargs != 0:
        value = " " + str(action.metavar or action.dest.upper())
    text = (action.help or "") % {"default": action.default, "prog": prog}
    if action.choices and not action.option_strings:
        text += ": " + ", ".join(map(str, action.choices))
    return [code(name + value), text]


def command() -> str:
    """The page of `moodle-fleet`: every command with its options and examples."""
    parser = _parser()
    subs = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    texts = {choice.dest: choice.help or "" for choice in subs._choices_actions}
    parts = [
        "# The command", f"{parser.description} Completion and how it reports: [The command moodle-fleet](../docs/command.md).",
        table(("command", ""), ([f"[`{name}`](#moodle-fleet-{name})", texts[name]] for name in subs.choices)),
        "## Exit codes", table(("code", "meaning"), ([str(code_), text] for code_, text in usage.EXIT_CODES.items())),
    ]
    for name, sub in subs.choices.items():
        actions = [action for action in sub._actions if action.help != argparse.SUPPRESS and action.dest != "help"]
        examples, note = usage.EXAMPLES.get(name, (((f"moodle-fleet {name} --json", "as data"),), ""))
        parts += [
            f"## moodle-fleet {name}", f"{texts[name][:1].upper()}{texts[name][1:]}. {note}",
            table(("argument", ""), (_argument(action, sub.prog) for action in actions)),
            "```console\n" + "\n".join(f"$ {line}    # {text}" for line, text in examples) + "\n```",
        ]
    return "\n\n".join(part for part in parts if part) + "\n"


# -- modules and roles ------------------------------------------------------------------------------------------------


class _Links(LinkProvider):
    """Leads from one page of the reference to another."""

    def plugin_link(self, plugin: dom.PluginIdentifier) -> str | None:
        name = plugin.fqcn.removeprefix(f"{COLLECTION}.")
        return f"{plugin.type}_{name}.md" if plugin.fqcn.startswith(COLLECTION) else None


def prose(text: str | Sequence[str] | None) -> str:
    """Ansible's own markup as one line of Markdown."""
    shown = to_md(parse(text or "", Context()), link_provider=_Links(), par_sep=" ").strip()
    # Escapes are for text; in an address they would be in the way of whoever rewrites it.
    return re.sub(r"(?<=\]\()[^)\s]+", lambda target: target[0].replace("\\", ""), shown)


def _as_yaml(value: Any) -> str:
    """A default or a sample, on one line as YAML has it."""
    return code(value) if isinstance(value, str) and value else code(json.dumps(value, ensure_ascii=False))


def option_rows(options: Mapping[str, Mapping[str, Any]], prefix: str = "") -> Iterator[list[str]]:
    """A row for every option, suboptions after theirs."""
    for name, option in options.items():
        kind = str(option.get("type", "str")) + (f" of {option['elements']}" if option.get("elements") else "")
        text = prose(option["description"])
        if option.get("choices"):
            text += " One of " + ", ".join(_as_yaml(choice) for choice in option["choices"]) + "."
        default = "required" if option.get("required") else _as_yaml(option["default"]) if option.get("default") is not None else ""
        yield [code(prefix + name), kind, default, text]
        yield from option_rows(option.get("options") or option.get("suboptions") or {}, f"{prefix}{name}.")


def _return_rows(values: Mapping[str, Mapping[str, Any]], prefix: str = "") -> Iterator[list[str]]:
    for name, value in values.items():
        sample = _as_yaml(value["sample"]) if value.get("sample") not in (None, [], {}) else ""
        yield [code(prefix + name), str(value.get("type", "")), prose(value.get("returned")), prose(value["description"]), sample]
        yield from _return_rows(value.get("contains") or {}, f"{prefix}{name}.")


def documented() -> dict[str, dict[str, Any]]:
    """Everything of the collection that has a specification, as ansible-doc gives it: kind, then name without the collection's."""
    done = subprocess.run(
        ["ansible-doc", "--metadata-dump", "--no-fail-on-errors", COLLECTION], check=True, capture_output=True, text=True,
    )
    found = json.loads(done.stdout)["all"]
    return {kind: {name.removeprefix(f"{COLLECTION}."): value for name, value in found[kind].items()} for kind in KINDS}


def plugin(name: str, spec: Mapping[str, Any]) -> str:
    """The page of a module or another plugin."""
    doc = spec["doc"]
    attributes = doc.get("attributes") or {}
    parts = [
        f"# {name}", f"{prose(doc['short_description'])}. Its name in a playbook is `{COLLECTION}.{name}`.",
        "\n\n".join(map(prose, doc["description"])),
    ]
    if doc.get("options"):
        parts += ["## Options", table(("option", "type", "default", "meaning"), option_rows(doc["options"]))]
    if attributes:
        parts += ["## Attributes", table(
            ("attribute", "support", "meaning"),
            ([code(key), str(value["support"]), prose(value.get("details") or value["description"])] for key, value in attributes.items()),
        )]
    notes = [*(doc.get("notes") or []), *(f"Requires {one}." for one in doc.get("requirements") or [])]
    if notes:
        parts += ["## Notes", "\n".join(f"- {prose(note)}" for note in notes)]
    if spec.get("examples"):
        parts += ["## Examples", f"```yaml\n{spec['examples'].strip()}\n```"]
    if spec.get("return"):
        parts += ["## Return values", table(("key", "type", "returned", "meaning", "sample"), _return_rows(spec["return"]))]
    return "\n\n".join(part for part in parts if part) + "\n"


def variables(spec: Mapping[str, Any]) -> str:
    """What follows a role's README: the variables of its specification."""
    parts = [""]
    for entry, point in spec["entry_points"].items():
        title = "## Variables" if entry == "main" else f"## Variables of `tasks_from: {entry}`"
        parts += [title, table(("variable", "type", "default", "meaning"), option_rows(point.get("options") or {})) or "None."]
    return "\n\n".join(parts) + "\n"


# -- playbooks --------------------------------------------------------------------------------------------------------


def head_of(text: str) -> str:
    """The comment that a playbook begins with."""
    lines = text.removeprefix("---\n").splitlines()
    count = next((index for index, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines[:count])


def _head_page(head: str) -> Iterator[str]:
    """Paragraphs as they are, indented lines as a table of variables or as a command's arguments."""
    for block, lines in itertools.groupby(head.splitlines(), lambda line: "" if not line.strip() else "more" if line.startswith("  ") else "text"):
        given = list(lines)
        rows = [match.groups() for line in given if (match := _VARIABLE.match(line))]
        if block == "text":
            yield re.sub(r"docs/([a-z-]+)[.]md", r"[docs/\1.md](../docs/\1.md)", "\n".join(given))
        elif block == "more" and len(rows) == len(given):
            yield table(("variable", ""), ([", ".join(map(code, names.split(", "))), text] for names, text in rows))
        elif block == "more":
            yield "```text\n" + textwrap.dedent("\n".join(given)) + "\n```"


def _roles_of(play: Mapping[str, Any]) -> list[str]:
    """Roles of the collection that a play applies, in their order."""
    def inside(value: Any) -> Iterator[str]:
        if isinstance(value, str) and re.fullmatch(re.escape(COLLECTION) + r"[.]\w+", value):
            yield value.rpartition(".")[2]
        elif isinstance(value, Mapping):
            for key in ("role", "name", "block", "ansible.builtin.include_role", "ansible.builtin.import_role"):
                yield from inside(value.get(key))
        elif isinstance(value, list):
            for item in value:
                yield from inside(item)

    return list(dict.fromkeys(name for key in ("roles", "pre_tasks", "tasks", "post_tasks") for name in inside(play.get(key))))


def playbook(path: Path) -> str:
    """The page of a playbook: its head, then its plays."""
    text = path.read_text(encoding="utf-8")
    rows = []
    for play in yaml.safe_load(text):
        other = play.get("ansible.builtin.import_playbook")
        if other:
            rows.append([str(play.get("name", "")), f"[{other}](playbook_{Path(other).stem}.md)", ""])
        else:
            rows.append([play["name"], code(play["hosts"]), ", ".join(f"[{name}](role_{name}.md)" for name in _roles_of(play))])
    return "\n\n".join([f"# {path.name}", *_head_page(head_of(text)), "## Plays", table(("play", "hosts", "roles"), rows)]) + "\n"


def overview(title: str, pages: Mapping[str, tuple[str, str]]) -> str:
    """A page that leads to others: page → (name, what it is, of which the first sentence is shown)."""
    rows = [[f"[{name}]({page}.md)", re.split(r"(?<=[.:])\s", text, maxsplit=1)[0]] for page, (name, text) in sorted(pages.items())]
    return f"# {title}\n\n{table(('', ''), rows)}\n```{{toctree}}\n:hidden:\n\n" + "\n".join(sorted(pages)) + "\n```\n"
