#!/usr/bin/python
# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: release
short_description: Install, activate and prune releases of Moodle's code on a node
version_added: "1.0.0"
author: Moodle Fleet contributors (!UNKNOWN)
description:
  - A release is one immutable folder of code, owned by root and read-only for PHP. It is unpacked beside its place and
    then renamed, so that it is either there completely or not at all.
  - A symbolic link says which release is served; it is switched atomically.
  - What depends on the code alone is made with the release, namely Moodle's component cache, the list of its cache
    definitions, the code of its page templates, and its English strings.
options:
  name:
    description: Name of the release, as returned by M(elearning.moodle_fleet.release_source).
    type: str
    required: true
  digest:
    description: Checksum of the artefact, as returned by M(elearning.moodle_fleet.release_source).
    type: str
    required: true
  artifact:
    description:
      - The artefact on the node. It is removed once it is unpacked.
      - Without it, a release that isn't there is not an error but reported in RV(missing).
    type: path
  root:
    description: Folder of all releases and of the link to the one that is served.
    type: path
    default: /srv/moodle
  activate:
    description: Serve this release.
    type: bool
    default: true
  release_file:
    description: File that gets the name of the release that is served.
    type: path
    default: /etc/moodle-fleet/release
  component_root:
    description: Folder of what is made for each release.
    type: path
    default: /var/cache/moodle-fleet/component
  php:
    description:
      - PHP's command line program. Where it isn't installed, nothing is made for the release.
    type: str
    default: php
  php_range:
    description:
      - The PHP versions the code runs on, as returned by M(elearning.moodle_fleet.release_source). A release that
        doesn't fit the node's PHP is refused when it is installed.
    type: dict
    suboptions:
      minimum:
        description: The lowest version.
        type: str
        default: ''
      below:
        description: The first version that is too new.
        type: str
        default: ''
  user:
    description: The user as which Moodle's code is run.
    type: str
    default: www-data
  keep:
    description: How many releases to keep besides the one that is served. Older ones are removed.
    type: int
    default: 2
attributes:
  check_mode:
    description: Can run in check mode and return what would change.
    support: full
  diff_mode:
    description: Returns the releases before and after.
    support: full
seealso:
  - module: elearning.moodle_fleet.release_source
"""

EXAMPLES = r"""
- name: Install what was uploaded and serve it
  elearning.moodle_fleet.release:
    name: 4.5.6-1a2b3c4d
    digest: "{{ source.digest }}"
    artifact: /srv/moodle/.upload-4.5.6-1a2b3c4d

- name: Serve a release that is there already
  elearning.moodle_fleet.release:
    name: 4.5.6-1a2b3c4d
    digest: "{{ source.digest }}"
"""

RETURN = r"""
missing:
  description: Whether the release isn't there and no artefact was given.
  returned: always
  type: bool
installed:
  description: Whether it was unpacked now.
  returned: always
  type: bool
activated:
  description: Whether it became the one that is served now.
  returned: always
  type: bool
path:
  description: Its folder.
  returned: always
  type: str
  sample: /srv/moodle/releases/4.5.6-1a2b3c4d
removed:
  description: Names of the releases that were removed.
  returned: always
  type: list
  elements: str
"""

import hashlib
import json
import os
import re
import shutil
import tempfile

from ansible.module_utils.basic import AnsibleModule

NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z._+-]{0,63}")
CONFIG = "<?php $moodlefleetroot = __DIR__; require '/etc/moodle-fleet/config.php';\n"

# Runs Moodle's early code on its own, without any tenant, and prints what depends on the code alone.
DERIVE = r"""<?php
define('CLI_SCRIPT', true);
define('ABORT_AFTER_CONFIG', true);
define('CACHE_DISABLE_ALL', true);
define('IGNORE_COMPONENT_CACHE', true);
$CFG = new stdClass();
$CFG->debug = E_ALL;
$CFG->debugdisplay = 1;
$CFG->wwwroot = 'https://release.invalid';
$CFG->dataroot = getenv('MOODLE_FLEET_SCRATCH');
$CFG->tempdir = $CFG->cachedir = $CFG->localcachedir = $CFG->dataroot;
$root = getenv('MOODLE_FLEET_RELEASE');
require is_file("$root/lib/setup.php") ? "$root/lib/setup.php" : "$root/public/lib/setup.php";
if (!class_exists('core_component')) {
    // Code without components: its version is all there is.
    echo json_encode([
        'component' => null, 'definitions' => null, 'output' => new stdClass(), 'strings' => new stdClass(),
        'versions' => sha1_file("$CFG->dirroot/version.php"),
    ]);
    exit(0);
}
// Some lists use the constants of these.
require_once "$CFG->libdir/setuplib.php";
require_once "$CFG->libdir/moodlelib.php";
$all = [];
$collect = static function (string $component, string $file) use (&$all): void {
    $definitions = [];
    include $file;
    foreach ($definitions as $area => $definition) {
        $all["$component/$area"] = $definition + ['component' => $component, 'area' => $area];
    }
};
$collect('core', "$CFG->dirroot/lib/db/caches.php");
foreach (core_component::get_plugin_types() as $type => $unused) {
    foreach (core_component::get_plugin_list_with_file($type, 'db/caches.php') as $plugin => $file) {
        $collect("{$type}_{$plugin}", $file);
    }
}
// What pages are made of: which icons and templates there are, which of the files of code that are looked for without need, the
// templates' sources, and the code that Mustache makes of each, with the same options as renderer_base.
$made = null;
if (class_exists('Mustache_Engine')) {
    require_once "$CFG->libdir/weblib.php";
    $made = new class extends Mustache_Cache_AbstractCache {
        public array $code = [];
        public function load($key) {
            return false;
        }
        public function cache($key, $value) {
            $this->code[$key] = $value;
            eval("?>$value");
        }
    };
    $engine = new Mustache_Engine([
        'cache' => $made, 'escape' => 's', 'pragmas' => [Mustache_Engine::PRAGMA_BLOCKS], 'disable_lambda_rendering' => true,
    ]);
}
$files = $codes = $sources = [];
$flags = FilesystemIterator::SKIP_DOTS | FilesystemIterator::FOLLOW_SYMLINKS;
foreach (new RecursiveIteratorIterator(new RecursiveDirectoryIterator($CFG->dirroot, $flags)) as $file => $info) {
    $name = substr($file, strlen($CFG->dirroot) + 1);
    if (!preg_match('~(^|/)(pix\w*|templates)/~', $name)) {
        if (preg_match('~(^|/)(lib|renderers?|styles)\.php\z~', $name)) {
            $codes[$name] = true;
        }
        continue;
    }
    $files[$name] = true;
    if ($made && str_ends_with($name, '.mustache') && !preg_match('~/(tests|node_modules|vendor)/~', $name)) {
        try {
            $engine->loadTemplate(file_get_contents($file));
            $sources[$name] = file_get_contents($file);
        } catch (Mustache_Exception $unusable) {
            // Moodle says so to whoever uses it.
        }
    }
}
// English strings, as core_string_manager_standard puts them together where a site changes none.
$strings = [];
$add = static function (string $component, string $file) use (&$strings): void {
    $string = [];
    include $file;
    $strings["en_$component"] = $string;
};
foreach (glob("$CFG->dirroot/lang/en/*.php") as $file) {
    $name = basename($file, '.php');
    $add($name === 'moodle' ? 'core' : "core_$name", $file);
}
foreach (core_component::get_plugin_types() as $type => $unused) {
    foreach (core_component::get_plugin_list($type) as $plugin => $folder) {
        $file = "$folder/lang/en/" . ($type === 'mod' ? $plugin : "{$type}_$plugin") . '.php';
        if (is_file($file)) {
            $add("{$type}_$plugin", $file);
        }
    }
}
$list = static fn(array $values): string => "<?php\nreturn " . var_export($values, true) . ";\n";
echo json_encode([
    'component' => core_component::get_cache_content(),
    'definitions' => $list($all),
    'output' => ['files' => $list($files), 'code' => $list($codes)] + ($made ? ['sources' => $list($sources)] + $made->code : []),
    'strings' => array_map($list, $strings),
    'versions' => core_component::get_all_versions_hash(),
]);
"""


class Releases:
    """The releases on this node."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.params = module.params
        self.name = self.params["name"]
        self.folder = os.path.join(self.params["root"], "releases")
        self.path = os.path.join(self.folder, self.name)
        self.link = os.path.join(self.params["root"], "current")

    def marker(self, name: str) -> str:
        """Return the file that says a release is complete."""
        return os.path.join(self.folder, f".{name}.complete")

    def complete(self) -> bool:
        """Return whether the release is there, all of it, and made from the same artefact."""
        return os.path.isdir(self.path) and _read(self.marker(self.name)).strip() == self.params["digest"]

    def current(self) -> str:
        """Return the name of the release that is served, or nothing."""
        return os.path.basename(os.readlink(self.link)) if os.path.islink(self.link) else ""

    def present(self) -> list[str]:
        """Return the names of the releases that are there, the newest first."""
        if not os.path.isdir(self.folder):
            return []
        names = [entry.name for entry in os.scandir(self.folder) if entry.is_dir() and not entry.name.startswith(".")]
        return sorted(names, key=lambda name: os.stat(os.path.join(self.folder, name)).st_ctime, reverse=True)

    def superfluous(self) -> list[str]:
        """Return the releases that are neither served nor among those to keep."""
        current = self.name if self.params["activate"] else self.current()
        others = [name for name in self.present() if name not in (current, self.name)]
        return others[self.params["keep"]:]

    def check_php(self) -> None:
        """Refuse a release that doesn't run on this node's PHP."""
        limits = self.params["php_range"] or {}
        php = self.module.get_bin_path(self.params["php"])
        if php is None or not any(limits.values()):
            return
        version = self.module.run_command([php, "-r", "echo PHP_VERSION;"], check_rc=True)[1].strip()
        low, high = limits["minimum"], limits["below"]
        if (low and _number(version) < _number(low)) or (high and _number(version) >= _number(high)):
            wanted = " and ".join([f"PHP {low} or newer"] * bool(low) + [f"older than PHP {high}"] * bool(high))
            self.module.fail_json(
                msg=f"The release {self.name} does not run on this node's PHP {version}; it needs {wanted}:"
                " install such a PHP or choose another version of Moodle."
            )

    def unpack(self) -> None:
        """Put the artefact's content in place, completely or not at all."""
        artifact = self.params["artifact"]
        found = self.module.sha256(artifact) if os.path.isfile(artifact) else None
        if found != self.params["digest"]:
            self.module.fail_json(
                msg=f"The artefact {artifact} has the checksum {found}, not {self.params['digest']}: upload it again."
            )
        if self.current() == self.name and os.path.isdir(self.path):
            self.module.fail_json(
                msg=f"The release {self.name} is served but its folder {self.path} was not made from this artefact:"
                " serve another release first, then remove this folder."
            )
        os.makedirs(self.folder, mode=0o755, exist_ok=True)
        for entry in os.scandir(self.folder):
            if entry.name.startswith(".unpack-"):
                shutil.rmtree(entry.path)
        scratch = tempfile.mkdtemp(prefix=".unpack-", dir=self.folder)
        os.chmod(scratch, 0o755)
        self.module.run_command(
            ["tar", "--extract", "--gzip", "--no-same-owner", "--file", artifact, "--directory", scratch], check_rc=True
        )
        _write(os.path.join(scratch, "config.php"), CONFIG)
        if os.path.isdir(self.path):
            shutil.rmtree(self.path)
        os.rename(scratch, self.path)
        _write(self.marker(self.name), self.params["digest"] + "\n")
        os.unlink(artifact)

    def derived(self) -> str:
        """Return the folder of what is made for this release."""
        return os.path.join(self.params["component_root"], self.name)

    def origin(self) -> str:
        """Return what the derived files are made from: the release, and the recipe's way to make them."""
        return f"{self.params['digest']} {hashlib.sha256(DERIVE.encode()).hexdigest()[:12]}"

    def must_derive(self) -> bool:
        """Return whether something has to be made for the release and can be."""
        done = _read(os.path.join(self.derived(), "digest")).strip() == self.origin()
        return not done and self.module.get_bin_path(self.params["php"]) is not None

    def derive(self) -> None:
        """Make Moodle's component cache, the list of its cache definitions, the code of its templates, and its strings."""
        scratch = tempfile.mkdtemp(prefix="moodle-fleet-")
        try:
            shutil.chown(scratch, self.params["user"], self.params["user"])
            command = ["runuser", "-u", self.params["user"], "--", self.module.get_bin_path(self.params["php"], True)]
            code, out, err = self.module.run_command(
                command,
                data=DERIVE,
                environ_update={"MOODLE_FLEET_SCRATCH": scratch, "MOODLE_FLEET_RELEASE": self.path},
            )
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        try:
            made = json.loads(out) if code == 0 else None
        except ValueError:
            made = None
        if made is None:
            self.module.fail_json(msg=f"Moodle's code in {self.path} could not list its components: {(out + err).strip()[-800:]}")
        os.makedirs(self.derived(), mode=0o755, exist_ok=True)
        # Whose code fits a database is compared by this, see config.php.
        made["versions"] = f"<?php\nreturn '{made['versions']}';\n"
        for key in ("component", "definitions", "versions"):
            if made[key]:
                _write(os.path.join(self.derived(), f"{key}.php"), made[key])
        for folder in ("output", "strings"):
            os.makedirs(os.path.join(self.derived(), folder), mode=0o755, exist_ok=True)
            for name, code in made[folder].items():
                _write(os.path.join(self.derived(), folder, f"{name}.php"), code)
        _write(os.path.join(self.derived(), "digest"), self.origin() + "\n")

    def activate(self) -> None:
        """Serve the release from now on."""
        fresh = f"{self.link}.new"
        if os.path.lexists(fresh):
            os.unlink(fresh)
        os.symlink(os.path.join("releases", self.name), fresh)
        os.replace(fresh, self.link)
        os.makedirs(os.path.dirname(self.params["release_file"]), mode=0o755, exist_ok=True)
        _write(self.params["release_file"], self.name + "\n")

    def remove(self, name: str) -> None:
        """Remove a release; its marker first, so that a broken off removal isn't taken for a release."""
        if os.path.exists(self.marker(name)):
            os.unlink(self.marker(name))
        shutil.rmtree(os.path.join(self.folder, name))
        shutil.rmtree(os.path.join(self.params["component_root"], name), ignore_errors=True)


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"[0-9]+", version)[:3])


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as stream:
            return stream.read()
    except FileNotFoundError:
        return ""


def _write(path: str, text: str) -> None:
    fresh = f"{path}.new"
    with open(fresh, "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.chmod(fresh, 0o644)
    os.replace(fresh, path)


def run(module: AnsibleModule) -> dict:
    """Bring the node's releases into the wanted state and return the result."""
    releases = Releases(module)
    if not NAME.fullmatch(releases.name):
        module.fail_json(msg=f"name: {releases.name!r} is not allowed: use letters, digits and . _ + -")
    os.umask(0o022)
    before = {"releases": sorted(releases.present()), "current": releases.current()}
    complete = releases.complete()
    install = not complete and (module.params["artifact"] is not None or module.check_mode)
    missing = not complete and not install
    activate = (
        not missing
        and module.params["activate"]
        and (releases.current() != releases.name or _read(module.params["release_file"]).strip() != releases.name)
    )
    derive = not missing and (install or releases.must_derive())
    removed = [] if missing else releases.superfluous()
    if derive:
        releases.check_php()
    if not module.check_mode:
        if install:
            releases.unpack()
        if derive and releases.must_derive():
            releases.derive()
        if activate:
            releases.activate()
        for name in removed:
            releases.remove(name)
    after = {
        "releases": sorted((set(before["releases"]) | ({releases.name} if install else set())) - set(removed)),
        "current": releases.name if activate else before["current"],
    }
    return {
        "changed": install or activate or derive or bool(removed),
        "missing": missing,
        "installed": install,
        "activated": activate,
        "path": releases.path,
        "removed": removed,
        "diff": {"before": before, "after": after},
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "digest": {"type": "str", "required": True},
            "artifact": {"type": "path"},
            "root": {"type": "path", "default": "/srv/moodle"},
            "activate": {"type": "bool", "default": True},
            "release_file": {"type": "path", "default": "/etc/moodle-fleet/release"},
            "component_root": {"type": "path", "default": "/var/cache/moodle-fleet/component"},
            "php": {"type": "str", "default": "php"},
            "php_range": {
                "type": "dict",
                "options": {"minimum": {"type": "str", "default": ""}, "below": {"type": "str", "default": ""}},
            },
            "user": {"type": "str", "default": "www-data"},
            "keep": {"type": "int", "default": 2},
        },
        supports_check_mode=True,
    )
    try:
        result = run(module)
    except OSError as exc:
        module.fail_json(msg=f"Failed to install the release {module.params['name']}: {exc}")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
