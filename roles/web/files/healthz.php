<?php
// May this node serve? Answers for the node alone: it asks no tenant, no database and no Redis, so that an outage of one
// of those never takes every node away at once. Nothing here can wait: whether the shared file system answers is seen from
// the age of a file that a process of its own keeps young.
declare(strict_types=1);

(static function (): void {
    $run = '/run/moodle-fleet';
    $code = $_SERVER['MOODLE_FLEET_CODE'] ?? '/srv/moodle/current';
    $limit = (float) ($_SERVER['MOODLE_FLEET_FILES_MAX_AGE'] ?? 5);

    // Not realpath(): PHP would remember the old release.
    $target = @readlink($code);
    $release = $target === false ? '' : basename($target);
    $expected = trim((string) @file_get_contents('/etc/moodle-fleet/release'));
    $checked = @filemtime("$run/files");
    $workers = preg_match('/= (\d+)/', (string) @file_get_contents("$run/workers.conf"), $found) ? (int) $found[1] : 0;

    $reason = match (true) {
        $release === '' => 'there is no release on this node',
        $expected !== '' && $release !== $expected => "release $release is on this node, $expected is wanted",
        is_file("$run/draining") => 'draining',
        !is_file("$run/warm") => 'not warm yet',
        $checked === false => 'the shared files were never read',
        time() - $checked > $limit => 'the shared files have not answered for ' . (time() - $checked) . ' s',
        default => '',
    };
    http_response_code($reason === '' ? 200 : 503);
    header('Content-Type: application/json');
    header('Cache-Control: no-store');
    echo json_encode([
        'status' => $reason === '' ? 'ready' : 'unavailable',
        'release' => $release,
        'workers' => $workers,
        'files_seconds' => (int) @file_get_contents("$run/files") / 100,
        'tenants' => trim((string) @file_get_contents('/etc/moodle-fleet/tenants.fingerprint')),
    ] + ($reason === '' ? [] : ['reason' => $reason])), "\n";
})();
