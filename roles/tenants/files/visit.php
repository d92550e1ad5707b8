<?php
// The frame of a page, for no visitor. Written by Ansible; changes made here are lost.
//
// The warm-up asks for it in every worker of PHP-FPM before a node serves: a worker's first page costs half as much again as its
// second, since the memory that holds the compiled code is not mapped in it yet. One tenant stands for all.

$moodlefleetvisit = (static function (): ?array {
    foreach (array_reverse((require '/etc/moodle-fleet/tenants.php')['tenants']) as $tenant) {
        if ($tenant['state'] === 'active' && !isset($tenant['uid'])) {
            return $tenant;
        }
    }
    return null;
})();
if ($moodlefleetvisit === null) {
    exit;
}
$_SERVER['HTTP_HOST'] = $_SERVER['SERVER_NAME'] = parse_url($moodlefleetvisit['wwwroot'], PHP_URL_HOST);
$_SERVER['REMOTE_ADDR'] = '127.0.0.1';
$_SERVER['SERVER_SOFTWARE'] = 'nginx';
$_SERVER['SCRIPT_NAME'] = $_SERVER['PHP_SELF'] = $_SERVER['REQUEST_URI'] = '/login/index.php';
// No session.
define('NO_MOODLE_COOKIES', true);
require $_SERVER['MOODLE_FLEET_ROOT'] . '/config.php';

if (isset($PAGE, $OUTPUT)) {
    $PAGE->set_context(context_system::instance());
    $PAGE->set_url('/login/index.php');
    $PAGE->set_pagelayout('login');
    echo $OUTPUT->header(), $OUTPUT->footer();
}
echo "\nmade\n";
