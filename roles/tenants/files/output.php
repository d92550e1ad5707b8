<?php
// Loaded by config.php for pages. Written by Ansible; changes made here are lost.
//
// For each activity of a course Moodle tries some thirty names of icon files, in the theme, in the data directory and in the
// plugin, and for each template the theme's folder first: hundreds of lookups in a page, a third of them on the shared file
// system, and PHP walks the whole path of each to see that it lies within open_basedir. Moodle's classes in this namespace call
// these functions instead of PHP's own of the same name. What they find in a release, which never changes, is kept in the
// node's memory; what they find among the site's own icons is kept until the end of the request.
namespace core\output;

function file_exists(string $file): bool {
    return look('file_exists', $file);
}

function is_readable(string $file): bool {
    return look('is_readable', $file);
}

function look(string $how, string $file): bool {
    global $CFG;
    static $release = null, $icons = [];
    if (str_starts_with($file, "$CFG->dataroot/pix")) {
        return $icons[$how][$file] ??= ("\\$how")($file);
    }
    if (!str_starts_with($file, "$CFG->dirroot/")) {
        return ("\\$how")($file);
    }
    if ($release === null) {
        $name = "moodle-fleet:output:$CFG->dirroot";
        $release = (function_exists('apcu_fetch') ? apcu_fetch($name) : false) ?: ['file_exists' => [], 'is_readable' => []];
        $before = count($release, COUNT_RECURSIVE);
        register_shutdown_function(static function () use ($name, $before, &$release): void {
            $count = count($release, COUNT_RECURSIVE);
            // Some names come with the request: nobody fills the memory with them.
            if ($count > $before && $count < 5000 && function_exists('apcu_store')) {
                apcu_store($name, $release);
            }
        });
    }
    return $release[$how][$file] ??= ("\\$how")($file);
}
