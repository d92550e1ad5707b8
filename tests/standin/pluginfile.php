<?php
require __DIR__ . '/config.php';
require_login();
session_write_close();

if (!preg_match('~\A/([0-9]+)/~', $_SERVER['PATH_INFO'] ?? '', $match)) {
    stop(404, 'File not found');
}
$file = rows('SELECT * FROM mdl_files WHERE id = ?', [(int) $match[1]])[0] ?? stop(404, 'File not found');
$hash = $file['contenthash'];
$path = "$CFG->dataroot/filedir/" . substr($hash, 0, 2) . '/' . substr($hash, 2, 2) . "/$hash";
header('Content-Type: application/octet-stream');
header('Content-Disposition: attachment; filename="' . addcslashes($file['filename'], '"\\') . '"');
foreach ($CFG->xsendfilealiases ?? [] as $alias => $folder) {
    if (!empty($CFG->xsendfile) && str_starts_with($path, "$folder/")) {
        header("$CFG->xsendfile: $alias" . substr($path, strlen($folder) + 1));
        exit;
    }
}
header("Content-Length: $file[filesize]");
readfile($path);
