<?php
// Says what is wrong with a site, before and after an upgrade. Written by Ansible; changes made here are lost.
//
// What to do comes as JSON on standard input: root, and purge (drop all caches first). The last line of output that begins with a brace is a
// JSON object of lists:
//   checks       the checks of status that Moodle itself takes for an error, as admin/cli/checks.php counts them
//   environment  what Moodle's list of requirements misses
//   page         why the site's frame could not be rendered

if (PHP_SAPI !== 'cli') {
    exit(1);
}
define('CLI_SCRIPT', true);
$moodlefleetcall = json_decode(stream_get_contents(STDIN), true);
if (!is_array($moodlefleetcall) || !isset($moodlefleetcall['root'])) {
    fwrite(STDERR, "moodle-fleet: standard input is not a JSON object with 'root'.\n");
    exit(64);
}
require $moodlefleetcall['root'] . '/config.php';

(static function (array $call): void {
    global $CFG;
    $found = ['checks' => [], 'environment' => [], 'page' => []];
    if (!empty($call['purge'])) {
        purge_all_caches();
    }

    if (class_exists('\core\check\manager')) {
        foreach (\core\check\manager::get_checks('status') as $check) {
            if (in_array($check->get_result()->get_status(), [\core\check\result::ERROR, \core\check\result::CRITICAL], true)) {
                $found['checks'][] = $check->get_ref();
            }
        }
    }

    if (is_file("$CFG->libdir/environmentlib.php")) {
        require_once "$CFG->libdir/environmentlib.php";
        [, $results] = check_moodle_environment(normalize_version($CFG->release), ENV_SELECT_RELEASE);
        foreach ($results as $result) {
            if (!$result->getStatus() && $result->getLevel() === 'required') {
                $found['environment'][] = trim($result->part . ' ' . $result->getInfo());
            }
        }
    }

    try {
        $frame = moodle_fleet_frame();
        // Its very end is printed when the script ends.
        if (stripos($frame, '</title>') === false || stripos($frame, '<body') === false) {
            $found['page'][] = 'the frame of the site is no page';
        }
    } catch (Throwable $problem) {
        $found['page'][] = get_class($problem) . ': ' . $problem->getMessage();
    }
    echo "\n", json_encode($found, JSON_INVALID_UTF8_SUBSTITUTE), "\n";
})($moodlefleetcall);

/** The frame of a page, as a visitor would get it: theme, language, blocks, settings and rights all take part. */
function moodle_fleet_frame(): string {
    global $PAGE;
    if (!class_exists('moodle_page')) {
        ob_start();
        page('Probe', '');
        return ob_get_clean();
    }
    $PAGE->set_context(context_system::instance());
    $PAGE->set_url('/');
    $PAGE->set_pagelayout('standard');
    $renderer = $PAGE->get_renderer('core', null, RENDERER_TARGET_GENERAL);
    return $renderer->header() . $renderer->footer();
}
