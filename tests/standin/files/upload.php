<?php
require __DIR__ . '/../config.php';
require_login();
if ($_SERVER['REQUEST_METHOD'] !== 'POST') {
    redirect('/my/');
}
require_sesskey();
session_write_close();

$file = $_FILES['file'] ?? null;
if (!$file || $file['error'] !== UPLOAD_ERR_OK) {
    stop(400, 'No file was uploaded');
}
// Moodle's layout of its file store: by content, renamed into place.
$hash = sha1_file($file['tmp_name']);
$folder = "$CFG->dataroot/filedir/" . substr($hash, 0, 2) . '/' . substr($hash, 2, 2);
is_dir($folder) || mkdir($folder, $CFG->directorypermissions, true);
copy($file['tmp_name'], "$folder/$hash.tmp" . getmypid());
rename("$folder/$hash.tmp" . getmypid(), "$folder/$hash");
rows('INSERT INTO mdl_files (contenthash, filename, filesize) VALUES (?, ?, ?)', [$hash, basename($file['name']), $file['size']]);
$path = '/pluginfile.php/' . db()->insert_id . '/' . rawurlencode(basename($file['name']));
page('Uploaded', '<a id="file" href="' . e($path) . "\">$path</a>");
