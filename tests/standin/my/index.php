<?php
require __DIR__ . '/../config.php';
require_login();
$key = sesskey();
session_write_close();

page('Dashboard', '<form action="/course/edit.php" method="post">'
    . "<input type=\"hidden\" name=\"sesskey\" value=\"$key\"><input name=\"fullname\"> <button>Create a course</button></form>"
    . '<form action="/files/upload.php" method="post" enctype="multipart/form-data">'
    . "<input type=\"hidden\" name=\"sesskey\" value=\"$key\"><input type=\"file\" name=\"file\"> <button>Upload a file</button></form>");
