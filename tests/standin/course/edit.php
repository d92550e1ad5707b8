<?php
require __DIR__ . '/../config.php';
require_login();
if ($_SERVER['REQUEST_METHOD'] !== 'POST') {
    redirect('/my/');
}
require_sesskey();
session_write_close();

$name = trim($_POST['fullname'] ?? '') ?: stop(400, 'Missing full name');
rows("INSERT INTO mdl_course (shortname, fullname, format, timemodified) VALUES (?, ?, 'topics', ?)",
    [trim($_POST['shortname'] ?? '') ?: $name, $name, time()]);
redirect('/course/view.php?id=' . db()->insert_id);
