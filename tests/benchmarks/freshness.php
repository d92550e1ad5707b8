<?php
// Changes something of a site, or reads it back, inside PHP-FPM of one node: {"do": "write"|"read", "value": "…"}.
$job = json_decode((string) file_get_contents('php://input'), true);
require '/srv/moodle/current/config.php';
global $DB, $CFG;
require_once "$CFG->dirroot/course/lib.php";

$course = $DB->get_record('course', ['shortname' => 'LOAD'], '*', MUST_EXIST);
$user = $DB->get_record('user', ['username' => 'learner1'], '*', MUST_EXIST);
if ($job['do'] === 'write') {
    set_config('moodle_fleet_changed', $job['value']);
    set_config('bench', $job['value'], 'local_moodle_fleet');
    // A name in the course's cached structure, changed as editing a course does it.
    $section = $DB->get_record('course_sections', ['course' => $course->id, 'section' => 1], '*', MUST_EXIST);
    course_update_section($course, $section, ['name' => $job['value']]);
    // The category's name, in a cache of its own.
    core_course_category::get($course->category, MUST_EXIST, true)->update(['name' => $job['value']]);
    // A role's permissions decide what a learner may do.
    $role = $DB->get_field('role', 'id', ['shortname' => 'student'], MUST_EXIST);
    assign_capability('moodle/course:viewhiddensections', hexdec(substr($job['value'], -1)) % 2 ? CAP_ALLOW : CAP_INHERIT,
        $role, context_course::instance($course->id)->id, true);
}
$seen = [
    'config' => (string) get_config('core', 'moodle_fleet_changed'),
    'plugin config' => (string) get_config('local_moodle_fleet', 'bench'),
    'course structure' => (string) get_fast_modinfo($course->id)->get_section_info(1)->name,
    'category' => core_course_category::get($course->category, MUST_EXIST, true)->name,
    'permission' => has_capability('moodle/course:viewhiddensections', context_course::instance($course->id), $user) ? '1' : '0',
];
header('Content-Type: application/json');
echo json_encode($seen);
