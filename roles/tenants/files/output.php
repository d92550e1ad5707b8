<?php
// Loaded by config.php for pages. Written by Ansible; changes made here are lost.
//
// For each activity of a course Moodle tries some thirty names of icon files, in the theme, in the data directory and in the
// plugin, for each template the theme's folder first, for each renderer a file of code; and it asks each of its parts twice in
// every page whether it has something to add. These are hundreds of lookups in a page, a third of them on the shared file system,
// and PHP walks the whole path of each to see that it lies within open_basedir. Moodle's classes in these namespaces call these
// functions instead of PHP's and Moodle's own of the same name. The release brings lists of what there is to be found; what is
// found among the site's own icons, and the folder for compiled templates, is kept until the end of the request.
namespace core\output {
    function file_exists(string $file): bool {
        return look('file_exists', $file);
    }

    function is_readable(string $file): bool {
        return look('is_readable', $file);
    }

    function look(string $how, string $file): bool {
        global $CFG;
        static $lists = [], $icons = [];
        if (str_starts_with($file, "$CFG->dataroot/pix")) {
            return $icons[$how][$file] ??= is_there(dirname($file)) && ("\\$how")($file);
        }
        $name = str_starts_with($file, "$CFG->dirroot/") ? substr($file, strlen($CFG->dirroot) + 1) : '';
        // What the lists hold is told by the module release.
        $list = preg_match('~(^|/)(pix\w*|templates)/~', $name) ? 'files' : (preg_match('~(^|/)(lib|renderers?|styles)\.php\z~', $name) ? 'code' : '');
        if ($list === '' || preg_match('~^/|//|(^|/)\.~', $name)) {
            return ("\\$how")($file);
        }
        $lists[$list] ??= \is_file("$CFG->moodle_fleet_output/$list.php") ? require "$CFG->moodle_fleet_output/$list.php" : [];
        return $lists[$list] ? isset($lists[$list][$name]) : ("\\$how")($file);
    }

    // Most sites have no icons of their own: one lookup tells, and not one for each.
    function is_there(string $folder): bool {
        global $CFG;
        static $there = [];
        return $there[$folder] ??= $folder === $CFG->dataroot || is_there(dirname($folder)) && is_dir($folder);
    }

    function make_localcache_directory(string $directory, bool ...$how): string|false {
        static $made = [];
        return $made[$directory] ??= \make_localcache_directory($directory, ...$how);
    }

    function glob(string $pattern, int $flags = 0): array|false {
        global $CFG;
        static $found = [];
        return $pattern === "$CFG->localcachedir/mustache/*" ? $found[$flags] ??= \glob($pattern, $flags) : \glob($pattern, $flags);
    }

    function component_callback(string $component, string $function, array $params = [], mixed $default = null, mixed ...$more): mixed {
        $folder = \core_component::get_core_subsystems()[$component] ?? null;
        if ($folder && !function_exists("core_{$component}_$function") && !function_exists("{$component}_$function") && !file_exists("$folder/lib.php")) {
            return $default;
        }
        return \component_callback($component, $function, $params, $default, ...$more);
    }
}

namespace core\output\renderer_factory {
    function file_exists(string $file): bool {
        return \core\output\file_exists($file);
    }
}

namespace core\hook\output {
    function component_callback(mixed ...$given): mixed {
        return \core\output\component_callback(...$given);
    }
}
