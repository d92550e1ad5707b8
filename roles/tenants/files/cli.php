<?php
// Runs one of Moodle's command line scripts. Written by Ansible; changes made here are lost.
//
// The arguments come as JSON on standard input, so that a password in them shows up neither in the
// list of processes nor in a log:
//   {"root": "/srv/moodle/current", "script": "admin/cli/cfg.php", "args": ["--name=theme"]}

if (PHP_SAPI !== 'cli') {
    exit(1);
}
$moodlefleetcall = json_decode(stream_get_contents(STDIN), true);
if (!is_array($moodlefleetcall) || !isset($moodlefleetcall['script'])) {
    fwrite(STDERR, "moodle-fleet: standard input is not a JSON object with 'script' and 'args'.\n");
    exit(64);
}
$moodlefleetscript = null;
foreach (['', 'public/'] as $moodlefleetprefix) {
    $moodlefleetcandidate = ($moodlefleetcall['root'] ?? '/srv/moodle/current')
        . "/$moodlefleetprefix" . $moodlefleetcall['script'];
    if (is_file($moodlefleetcandidate)) {
        $moodlefleetscript = realpath($moodlefleetcandidate);
        break;
    }
}
if ($moodlefleetscript === null) {
    fwrite(STDERR, "moodle-fleet: the release has no {$moodlefleetcall['script']}.\n");
    exit(66);
}
$argv = array_merge([$moodlefleetscript], $moodlefleetcall['args'] ?? []);
$argc = count($argv);
$_SERVER['argv'] = $argv;
$_SERVER['argc'] = $argc;
$_SERVER['SCRIPT_NAME'] = $_SERVER['SCRIPT_FILENAME'] = $_SERVER['PHP_SELF'] = $moodlefleetscript;
unset($moodlefleetcall, $moodlefleetcandidate, $moodlefleetprefix);
chdir(dirname($moodlefleetscript));
require $moodlefleetscript;
