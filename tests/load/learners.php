<?php
// Makes learners and a course for a load test, and counts what they wrote. PHP reads it from standard input on the jobs
// node, as the web user, with MOODLE_TENANT set; what to do is JSON in the environment, because there is a password in it:
//   {"action": "make", "users": 200, "password": "…", "run": "r1"}   → {"course": 2, …}
//   {"action": "count", "run": "r1"}                                 → {"numbers": {"1": 1, …}}
define('CLI_SCRIPT', true);
require '/srv/moodle/current/config.php';

$job = json_decode((string) getenv('MOODLE_LOAD_JOB'), true);
$run = $job['run'] ?? 'none';
$numbers = [];

if (function_exists('rows')) {
    // The stand-in site.
    if ($job['action'] === 'count') {
        foreach (rows('SELECT number, COUNT(*) AS times FROM mdl_standin_writes WHERE client = ? GROUP BY number', [$run]) as $row) {
            $numbers[$row['number']] = (int) $row['times'];
        }
        echo json_encode(['numbers' => (object) $numbers]), "\n";
        exit;
    }
    $hash = password_hash($job['password'], PASSWORD_BCRYPT, ['cost' => 4]);
    for ($i = 1; $i <= $job['users']; $i++) {
        rows('INSERT INTO mdl_user (username, password, email) VALUES (?, ?, ?) ON DUPLICATE KEY UPDATE password = VALUES(password)',
            ["learner$i", $hash, "learner$i@load.invalid"]);
    }
    $course = rows("SELECT id FROM mdl_course WHERE shortname = 'LOAD'")[0]['id'] ?? null;
    if ($course === null) {
        rows("INSERT INTO mdl_course (shortname, fullname, format, timemodified) VALUES ('LOAD', 'Load test', 'topics', ?)", [time()]);
        $course = db()->insert_id;
    }
    echo json_encode(['standin' => true, 'release' => get_config_value('release'), 'course' => (int) $course]), "\n";
    exit;
}

global $DB, $CFG;
if ($job['action'] === 'count') {
    $sql = 'SELECT subject, COUNT(*) AS times FROM {forum_posts} WHERE ' . $DB->sql_like('subject', '?') . ' GROUP BY subject';
    foreach ($DB->get_records_sql($sql, ["load $run %"]) as $row) {
        $numbers[substr($row->subject, strlen("load $run "))] = (int) $row->times;
    }
    echo json_encode(['numbers' => (object) $numbers]), "\n";
    exit;
}

require_once "$CFG->dirroot/user/lib.php";
require_once "$CFG->dirroot/course/lib.php";
require_once "$CFG->dirroot/course/modlib.php";
require_once "$CFG->dirroot/mod/forum/lib.php";
require_once "$CFG->libdir/enrollib.php";
\core\session\manager::set_user(get_admin());

$course = $DB->get_record('course', ['shortname' => 'LOAD']);
if (!$course) {
    $course = create_course((object) ['shortname' => 'LOAD', 'fullname' => 'Load test', 'format' => 'topics', 'numsections' => 5,
        'category' => \core_course_category::get_default()->id, 'startdate' => time() - DAYSECS]);
    for ($i = 1; $i <= 10; $i++) {
        create_module((object) ['modulename' => 'page', 'course' => $course->id, 'section' => 1 + $i % 5, 'visible' => 1,
            'name' => "Reading $i", 'introeditor' => ['text' => '', 'format' => FORMAT_HTML, 'itemid' => 0], 'content' => str_repeat("<p>Read page $i.</p>", 40),
            'contentformat' => FORMAT_HTML, 'display' => 5, 'printintro' => 0, 'printlastmodified' => 1]);
    }
}
$forum = forum_get_course_forum($course->id, 'social');
// Nobody is to get mail from a load test.
$DB->set_field('forum', 'forcesubscribe', FORUM_DISALLOWSUBSCRIBE, ['id' => $forum->id]);
rebuild_course_cache($course->id, true);

$hash = hash_internal_user_password($job['password'], true);
$enrol = enrol_get_plugin('manual');
$instances = array_filter(enrol_get_instances($course->id, true), static fn($instance) => $instance->enrol === 'manual');
$instance = reset($instances);
$role = $DB->get_field('role', 'id', ['shortname' => 'student'], MUST_EXIST);
$known = $DB->get_records_select_menu('user', $DB->sql_like('username', '?'), ['learner%'], '', 'username, id');
$enrolled = $DB->get_records_menu('user_enrolments', ['enrolid' => $instance->id], '', 'userid, id');
for ($i = 1; $i <= $job['users']; $i++) {
    $id = $known["learner$i"] ?? user_create_user((object) ['username' => "learner$i", 'firstname' => 'Learner', 'lastname' => "No $i",
        'email' => "learner$i@load.invalid", 'auth' => 'manual', 'confirmed' => 1, 'emailstop' => 1, 'password' => $hash,
        'mnethostid' => $CFG->mnet_localhost_id], false, false);
    if (!isset($enrolled[$id])) {
        $enrol->enrol_user($instance, $id, $role);
    }
}
$DB->set_field_select('user', 'password', $hash, $DB->sql_like('username', '?'), ['learner%']);

$discussion = (object) ['course' => $course->id, 'forum' => $forum->id, 'name' => "Load test $run", 'message' => 'Numbered posts.',
    'messageformat' => FORMAT_HTML, 'messagetrust' => 0, 'mailnow' => 0, 'timelocked' => 0, 'attachments' => null, 'groupid' => -1,
    'timestart' => 0, 'timeend' => 0, 'pinned' => 0];
$discussionid = forum_add_discussion($discussion);

echo json_encode([
    'standin' => false,
    'release' => $CFG->release,
    'course' => (int) $course->id,
    'pages' => array_map(intval(...), array_keys(get_coursemodules_in_course('page', $course->id))),
    'post' => (int) $DB->get_field('forum_discussions', 'firstpost', ['id' => $discussionid]),
]), "\n";
