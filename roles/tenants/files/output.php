<?php
// Loaded by config.php for pages. Written by Ansible; changes made here are lost.
//
// For each activity of a course Moodle tries some thirty names of icon files, in the theme, in the data directory and in the
// plugin, and for each template the theme's folder first: hundreds of lookups in a page, a third of them on the shared file
// system, and PHP walks the whole path of each to see that it lies within open_basedir. Moodle's classes in this namespace call
// these functions instead of PHP's own of the same name. The release brings the list of its icons and templates; what is found
// among the site's own icons is kept until the end of the request.
namespace core\output;

function file_exists(string $file): bool {
    return look('file_exists', $file);
}

function is_readable(string $file): bool {
    return look('is_readable', $file);
}

function look(string $how, string $file): bool {
    global $CFG;
    static $files = null, $icons = [];
    if (str_starts_with($file, "$CFG->dataroot/pix")) {
        return $icons[$how][$file] ??= ("\\$how")($file);
    }
    $files ??= \is_file("$CFG->moodle_fleet_output/files.php") ? require "$CFG->moodle_fleet_output/files.php" : false;
    $name = str_starts_with($file, "$CFG->dirroot/") ? substr($file, strlen($CFG->dirroot) + 1) : '';
    // What the list holds is told by the module release.
    if ($files === false || !preg_match('~(^|/)(pix\w*|templates)/~', $name)) {
        return ("\\$how")($file);
    }
    return isset($files[$name]);
}
