# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""From wherever Moodle's code comes to one reproducible artefact. Controller side, standard library only."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import urllib.error
import xml.etree.ElementTree
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ansible.module_utils.urls import ConnectionError as UrlConnectionError
from ansible.module_utils.urls import open_url

# A new number makes all artefacts anew.
FORMAT = 2
# Every file has this time, so that the artefact is reproducible. Not 0: OPcache never keeps a file whose time is 0.
MODIFIED = 946684800
LEFT_OUT_ANYWHERE = frozenset((".git", "node_modules"))
LEFT_OUT_AT_TOP = frozenset(("config.php",))

_VERSION_LINE = re.compile(r"^\s*\$(version|release|branch|maturity)\s*=\s*['\"]?([^'\";]+)", re.MULTILINE)


class SourceError(Exception):
    """The source cannot be used; the text is one line."""


@dataclass(frozen=True)
class Entry:
    """One file or symbolic link of the tree."""

    path: str
    size: int
    mtime: int
    executable: bool
    link: str = ""


def kind(source: str) -> str:
    """Return what a source is: ``folder``, ``tarball``, ``url`` (of a tarball) or ``git``."""
    remote = re.match(r"(https?|git|ssh|file)://|[^/@\s]+@[^/:\s]+:", source)
    if remote:
        return "url" if re.search(r"\.(tgz|tar\.(gz|xz|bz2))([?#]|$)", source) else "git"
    if os.path.isdir(source):
        bare = os.path.isfile(os.path.join(source, "HEAD")) and os.path.isdir(os.path.join(source, "objects"))
        return "git" if bare else "folder"
    if os.path.isfile(source):
        return "tarball"
    raise SourceError(f"moodle_source: {source!r} is neither a git URL nor a tarball or folder that exists here")


def entries(root: str) -> Iterator[Entry]:
    """Yield the files of a tree in a fixed order, without what doesn't belong to a release."""
    pending = [""]
    while pending:
        folder = pending.pop()
        with os.scandir(os.path.join(root, folder)) as listing:
            items = sorted(listing, key=lambda item: item.name)
        for item in items:
            if item.name in LEFT_OUT_ANYWHERE or (not folder and item.name in LEFT_OUT_AT_TOP):
                continue
            path = f"{folder}/{item.name}" if folder else item.name
            if item.is_symlink():
                target = os.readlink(item.path)
                inside = os.path.normpath(os.path.join(folder, target))
                if os.path.isabs(target) or inside.startswith(".."):
                    raise SourceError(f"the symbolic link {path} leads out of the code, to {target}: replace it by what it points to")
                yield Entry(path, 0, 0, False, target)
            elif item.is_dir():
                pending.append(path)
            else:
                stat = item.stat()
                yield Entry(path, stat.st_size, stat.st_mtime_ns, bool(stat.st_mode & 0o100))


def fingerprint(root: str) -> str:
    """Return a cheap checksum that changes when the tree does: names, sizes, times, but no content."""
    digest = hashlib.sha256()
    for entry in entries(root):
        digest.update(f"{entry.path}\0{entry.size}\0{entry.mtime}\0{entry.executable}\0{entry.link}\n".encode())
    return digest.hexdigest()


def describe(root: str) -> dict:
    """Return release, version and branch of the Moodle code in a folder, and the PHP versions it runs on."""
    public = os.path.isfile(os.path.join(root, "public", "version.php"))
    web = os.path.join(root, "public") if public else root
    try:
        with open(os.path.join(web, "version.php"), encoding="utf-8") as stream:
            found = {key: value.strip() for key, value in _VERSION_LINE.findall(stream.read())}
    except OSError:
        found = {}
    missing = [key for key in ("version", "release", "branch") if not found.get(key)]
    if missing:
        raise SourceError(f"the source is no Moodle code: version.php does not say ${missing[0]}")
    number = re.match(r"[0-9A-Za-z.]+", found["release"])
    return {
        "release": number.group(0) if number else found["branch"],
        "version": found["version"],
        "branch": found["branch"],
        "public_root": public,
        "php": php_range(web, found["branch"]),
    }


def php_range(web: str, branch: str) -> dict:
    """Return ``minimum`` and ``below`` (the first version that is refused), empty when the code doesn't say."""
    found = {"minimum": "", "below": ""}
    wanted = f"{int(branch) // 100}.{int(branch) % 100}" if branch.isdigit() and len(branch) == 3 else branch
    try:
        tree = xml.etree.ElementTree.parse(os.path.join(web, "admin", "environment.xml"))
    except (OSError, xml.etree.ElementTree.ParseError):
        return found
    for node in tree.getroot().findall("MOODLE"):
        php = node.find("PHP")
        if node.get("version") != wanted or php is None:
            continue
        found["minimum"] = php.get("version", "")
        for rule in php.findall("RESTRICT"):
            match = re.search(r"restrict_php_version_([0-9])([0-9]+)$", rule.get("function", ""))
            if match:
                found["below"] = f"{match.group(1)}.{match.group(2)}"
    return found


def pack(root: str, target: str, report: Callable[[str], None]) -> str:
    """Write the artefact and return the checksum of its content, the same for the same code wherever it came from."""
    content = hashlib.sha256(f"format {FORMAT}\n".encode())
    known = sorted(entries(root), key=lambda entry: entry.path)
    with open(target, "wb") as raw:
        with gzip.GzipFile(filename="", mode="wb", compresslevel=3, fileobj=raw, mtime=0) as zipped:
            with tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as archive:
                _add_folders(archive, known)
                for count, entry in enumerate(known, start=1):
                    _add(archive, root, entry, content)
                    if count % 5000 == 0:
                        report(f"packed {count} of {len(known)} files")
        raw.flush()
        os.fsync(raw.fileno())
    return content.hexdigest()


def _add_folders(archive: tarfile.TarFile, known: list[Entry]) -> None:
    folders = set()
    for entry in known:
        folder = os.path.dirname(entry.path)
        while folder:
            folders.add(folder)
            folder = os.path.dirname(folder)
    for folder in sorted(folders):
        info = tarfile.TarInfo(folder)
        info.mtime = MODIFIED
        info.type = tarfile.DIRTYPE
        info.mode = 0o755
        archive.addfile(info)


def _add(archive: tarfile.TarFile, root: str, entry: Entry, content) -> None:
    info = tarfile.TarInfo(entry.path)
    info.mtime = MODIFIED
    info.mode = 0o755 if entry.executable else 0o644
    if entry.link:
        info.type = tarfile.SYMTYPE
        info.linkname = entry.link
        content.update(f"{entry.path}\0link\0{entry.link}\n".encode())
        archive.addfile(info)
        return
    path = os.path.join(root, entry.path)
    with open(path, "rb") as stream:
        checksum = hashlib.file_digest(stream, "sha256").hexdigest()
        content.update(f"{entry.path}\0{info.mode:o}\0{checksum}\n".encode())
        info.size = os.fstat(stream.fileno()).st_size
        stream.seek(0)
        archive.addfile(info, stream)


class Builder:
    """Makes artefacts in a cache folder and finds them again."""

    def __init__(self, cache: str, timeout: int = 60, report: Callable[[str], None] = lambda text: None) -> None:
        self.cache = cache
        self.timeout = timeout
        self.report = report

    def build(self, source: str, version: str = "") -> tuple[dict, bool]:
        """Return what the artefact is, and whether it was made now."""
        os.makedirs(self.cache, mode=0o755, exist_ok=True)
        self._tidy()
        what = kind(source)
        if what in ("folder", "tarball"):
            source = os.path.abspath(source)
        key = self._key(what, source, version)
        known = self._recall(key)
        if known:
            return known, False
        scratch = tempfile.mkdtemp(prefix=".build-", dir=self.cache)
        try:
            root = source if what == "folder" else self._obtain(what, source, version, scratch)
            self.report(f"packing {root}")
            found = self._make(root, scratch)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        self._remember(key, found)
        return found, True

    def _tidy(self) -> None:
        """Remove what an interrupted run left; a folder in use is younger than an hour or so."""
        newest = max((entry.stat().st_mtime for entry in os.scandir(self.cache)), default=0)
        for entry in os.scandir(self.cache):
            if entry.name.startswith(".build-") and entry.stat().st_mtime < newest - 3600:
                shutil.rmtree(entry.path, ignore_errors=True)

    def _make(self, root: str, scratch: str) -> dict:
        found = describe(root)
        packed = os.path.join(scratch, "artifact.tar.gz")
        content = pack(root, packed, self.report)
        name = f"{found['release']}-{content[:8]}"
        artifact = os.path.join(self.cache, f"{name}.tar.gz")
        with open(packed, "rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        os.replace(packed, artifact)
        return {**found, "name": name, "artifact": artifact, "digest": digest}

    def _key(self, what: str, source: str, version: str) -> str:
        if what == "folder":
            state = fingerprint(source)
        elif what == "tarball":
            stat = os.stat(source)
            state = f"{stat.st_size} {stat.st_mtime_ns}"
        elif what == "git":
            state = self._commit(source, version)
        else:
            state = version
        return hashlib.sha256(f"{FORMAT}\0{what}\0{source}\0{state}".encode()).hexdigest()[:32]

    def _index(self, key: str) -> str:
        return os.path.join(self.cache, f".source-{key}.json")

    def _recall(self, key: str) -> dict | None:
        try:
            with open(self._index(key), encoding="utf-8") as stream:
                known = json.load(stream)
            return known if os.path.getsize(known["artifact"]) == known.pop("size") else None
        except (OSError, ValueError, KeyError):
            return None

    def _remember(self, key: str, found: dict) -> None:
        fresh = self._index(key) + ".new"
        with open(fresh, "w", encoding="utf-8") as stream:
            json.dump({**found, "size": os.path.getsize(found["artifact"])}, stream)
        os.replace(fresh, self._index(key))

    def _git(self, *arguments: str, timeout: int) -> str:
        command = ["git", "-c", "http.lowSpeedLimit=1000", "-c", "http.lowSpeedTime=30", *arguments]
        environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0", "GIT_SSH_COMMAND": "ssh -o BatchMode=yes -o ConnectTimeout=20"}
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment, check=False)
        except FileNotFoundError as exc:
            raise SourceError("moodle_source is a git repository, but the program git is not installed here") from exc
        except subprocess.TimeoutExpired as exc:
            raise SourceError(f"git gave no answer within {timeout} s") from exc
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.startswith(("fatal:", "error:", "ssh:"))]
            raise SourceError((lines or done.stderr.splitlines() or ["git failed"])[0])
        return done.stdout

    def _commit(self, source: str, version: str) -> str:
        if re.fullmatch(r"[0-9a-f]{40}", version):
            return version
        if version.startswith("-"):
            raise SourceError(f"moodle_version: {version!r} is no git ref")
        try:
            listed = self._git("ls-remote", "--", source, version or "HEAD", timeout=self.timeout)
        except SourceError as exc:
            raise SourceError(f"moodle_source: cannot reach {source}: {exc}") from exc
        found = {}
        for line in listed.splitlines():
            commit, ref = line.split("\t", 1)
            found[ref] = commit
        for ref in ("HEAD",) if not version else (f"refs/tags/{version}^{{}}", f"refs/tags/{version}", f"refs/heads/{version}", version):
            if ref in found:
                return found[ref]
        raise SourceError(f"moodle_version: {source} has no tag or branch {version!r}")

    def _obtain(self, what: str, source: str, version: str, scratch: str) -> str:
        if what == "git":
            return self._clone(source, version, os.path.join(scratch, "tree"))
        if what == "url":
            source = self._download(source, os.path.join(scratch, "download"))
        return self._unpack(source, os.path.join(scratch, "tree"))

    def _clone(self, source: str, version: str, target: str) -> str:
        self.report(f"fetching {version or 'HEAD'} from {source}")
        try:
            self._git("init", "--quiet", target, timeout=self.timeout)
            self._git("-C", target, "fetch", "--quiet", "--depth", "1", "--", source, version or "HEAD", timeout=1800)
            self._git("-C", target, "-c", "core.autocrlf=false", "checkout", "--quiet", "FETCH_HEAD", timeout=600)
        except SourceError as exc:
            raise SourceError(f"moodle_source: cannot fetch {version or 'HEAD'} from {source}: {exc}") from exc
        return target

    def _download(self, source: str, target: str) -> str:
        self.report(f"downloading {source}")
        try:
            with open_url(source, timeout=self.timeout, decompress=False) as answer, open(target, "wb") as stream:
                shutil.copyfileobj(answer, stream, 1 << 20)
        except (urllib.error.URLError, OSError, UrlConnectionError) as exc:
            raise SourceError(f"moodle_source: cannot download {source}: {getattr(exc, 'reason', exc)}") from exc
        return target

    def _unpack(self, source: str, target: str) -> str:
        os.makedirs(target)
        done = subprocess.run(
            ["tar", "--extract", "--no-same-owner", "--file", source, "--directory", target],
            capture_output=True, text=True, check=False,
        )
        if done.returncode:
            raise SourceError(f"moodle_source: cannot unpack {source}: {(done.stderr.splitlines() or ['tar failed'])[0]}")
        inside = os.listdir(target)
        # Most tarballs hold one folder with everything in it.
        if len(inside) == 1 and os.path.isdir(os.path.join(target, inside[0])):
            return os.path.join(target, inside[0])
        return target
