# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Builds the documentation site: python docs/site/build_site.py OUT. Any warning is an error, a link that leads nowhere too.

The pages are those of the repository, as they are, and the reference, which is made from the sources. Both are laid out in a folder
as in the repository, so that their links hold; a link to a source leads to its page of the reference, or to a copy of the file.
"""

from __future__ import annotations

import posixpath
import re
import shutil
import sys
import tempfile
from pathlib import Path

from sphinx.cmd.build import build_main

import reference_pages as reference

SITE = Path(__file__).parent
ROOT = SITE.parents[1]
LINK = re.compile(r"(?<=\]\()([^)\s#]+)(#[^)\s]*)?(?=\))")
# What stands in the README and has a page of its own here.
CUT = {"quick-start.md": ("Quick start", ("Try it: two commands", "One file defines a fleet", "Let it scale")), "figures.md": ("Figures", ("Figures",))}
# Where the repository's files are found on the site.
ELSEWHERE = (
    (re.compile(r"playbooks/(\w+)[.]yml"), r"reference/playbook_\1.md"),
    (re.compile(r"roles/(\w+)(?:/README[.]md|/meta/argument_specs[.]yml)?"), r"reference/role_\1.md"),
    (re.compile(r"plugins/modules/(\w+)[.]py"), r"reference/module_\1.md"),
    (re.compile(r"README[.]md|docs"), "index.md"),
)


def section(text: str, title: str) -> str:
    """A section of the second level, with its heading.

    :raises ValueError: when there is none of this title.
    """
    found = re.search(rf"^## {re.escape(title)}\n.*?(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    if found is None:
        raise ValueError(f"README.md has no section '{title}', which docs/site/build_site.py makes a page of")
    return found[0]


def links(text: str, origin: str, name: str, stage: Path) -> str:
    """A text of ``origin`` with the links that it needs as the page ``name``; other files that it names are copied to ``stage``."""
    def lead(match: re.Match[str]) -> str:
        target, anchor = match[1], match[2] or ""
        if re.match(r"[a-z]+:", target):
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), target))
        if path + anchor == "README.md#figures":
            path, anchor = "figures.md", ""
        made = next((pattern.sub(page, path) for pattern, page in ELSEWHERE if pattern.fullmatch(path)), "")
        if not made and not path.endswith(".md") and (ROOT / path).is_file():
            (stage / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / path, stage / path)
        return posixpath.relpath(made or path, posixpath.dirname(name) or ".") + anchor

    return LINK.sub(lead, text)


def stage_pages(stage: Path) -> None:
    """Lay out all pages below ``stage``."""
    def put(name: str, text: str, origin: str = "") -> None:
        (stage / name).parent.mkdir(parents=True, exist_ok=True)
        (stage / name).write_text(links(text, origin or name, name, stage), encoding="utf-8")

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    menu = (SITE / "index.md").read_text(encoding="utf-8")
    others = sorted(f"docs/{page.stem}" for page in (ROOT / "docs").glob("*.md") if f"docs/{page.stem}\n" not in menu)
    put("index.md", menu.replace("{others}\n", "".join(f"{page}\n" for page in others)))
    for name, (title, sections) in CUT.items():
        parts = [section(readme, one) for one in sections]
        if len(parts) == 1:
            parts = [parts[0].split("\n", 1)[1]]
        put(name, f"# {title}\n\n" + "".join(parts), "README.md")
    for page in (*(ROOT / "docs").glob("*.md"), ROOT / "CONTRIBUTING.md", ROOT / "tests" / "README.md"):
        put(str(page.relative_to(ROOT)), page.read_text(encoding="utf-8"))

    put("reference/fleet-file.md", reference.fleet_file())
    put("reference/command.md", reference.command())
    overviews: dict[str, dict[str, tuple[str, str]]] = {title: {} for title in ("Playbooks", "Roles", "Modules", "Plugins")}
    for book in sorted((ROOT / "playbooks").glob("*.yml")):
        put(f"reference/playbook_{book.stem}.md", reference.playbook(book))
        overviews["Playbooks"][f"playbook_{book.stem}"] = book.name, reference.head_of(book.read_text(encoding="utf-8"))
    found = reference.documented()
    for name, spec in found.pop("role").items():
        readme = (ROOT / "roles" / name / "README.md").read_text(encoding="utf-8")
        put(f"reference/role_{name}.md", links(readme, f"roles/{name}/README.md", "reference/x", stage) + reference.variables(spec))
        overviews["Roles"][f"role_{name}"] = name, reference.prose(spec["entry_points"]["main"]["short_description"])
    for kind, plugins in found.items():
        for name, spec in plugins.items():
            put(f"reference/{kind}_{name}.md", reference.plugin(name, spec))
            title = "Modules" if kind == "module" else "Plugins"
            overviews[title][f"{kind}_{name}"] = name, reference.prose(spec["doc"]["short_description"])
    for title, pages in overviews.items():
        put(f"reference/{title.lower()}.md", reference.overview(title, pages))


def render(stage: Path, out: Path) -> int:
    """Let Sphinx make pages of what was laid out; returns 0, or another number after saying what is wrong."""
    strict = ["-q", "--fail-on-warning", "--nitpicky", "--fresh-env"]
    return build_main([*strict, "--builder", "html", "--conf-dir", str(SITE), "--doctree-dir", str(stage / ".doctrees"), str(stage), str(out)])


def build(out: Path) -> int:
    """Write the site to ``out``; returns what `render` does."""
    with tempfile.TemporaryDirectory(prefix="moodle-fleet-docs-") as folder:
        stage_pages(Path(folder))
        return render(Path(folder), out)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python docs/site/build_site.py OUT")
    sys.exit(build(Path(sys.argv[1])))
