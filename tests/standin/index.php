<?php
require __DIR__ . '/config.php';
start_session();
session_write_close();

$list = '';
foreach (rows("SELECT id, fullname FROM mdl_course WHERE format <> 'site' ORDER BY id DESC LIMIT 50") as $course) {
    $list .= "<li><a href=\"/course/view.php?id=$course[id]\">" . e($course['fullname']) . "</a></li>\n";
}
page('Available courses', "<ul>\n$list</ul>\n");
