<?php
require __DIR__ . '/../config.php';
require_login();
session_write_close();

$course = rows("SELECT * FROM mdl_course WHERE id = ? AND format <> 'site'", [(int) ($_GET['id'] ?? 0)])[0]
    ?? stop(404, 'Cannot find data record in database table course.');
page($course['fullname'], '<p>' . e($course['shortname']) . ", changed {$course['timemodified']}</p>");
