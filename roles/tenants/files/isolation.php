<?php
// What a tenant's code sees of its own configuration, and of others' folders. Written by Ansible; changes made here are lost.
//
// Started by the isolation check, as PHP's user and for the tenant in MOODLE_TENANT. On standard input, as JSON: root, the
// release; keys, the settings to tell; paths, folders and files of others that it tries to read. No tenant's code runs here.

if (PHP_SAPI !== 'cli') {
    exit(1);
}
define('CLI_SCRIPT', true);
define('ABORT_AFTER_CONFIG', true);
$moodlefleetcall = json_decode(stream_get_contents(STDIN), true);
require $moodlefleetcall['root'] . '/config.php';

(static function (array $call): void {
    global $CFG;
    $found = ['config' => [], 'readable' => []];
    foreach ($call['keys'] as $key) {
        $found['config'][$key] = $CFG->$key ?? null;
    }
    $found['config']['cache_prefix'] = $CFG->moodle_fleet_cache['prefix'] ?? null;
    $found['config']['cache_localprefix'] = $CFG->moodle_fleet_cache['localprefix'] ?? null;
    foreach ($call['paths'] as $path) {
        if (@scandir($path) !== false || @file_get_contents($path, false, null, 0, 1) !== false) {
            $found['readable'][] = $path;
        }
    }
    echo json_encode($found), "\n";
})($moodlefleetcall);
