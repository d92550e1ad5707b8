<?php
// Records numbered POSTs, so that lost and doubled ones can be counted: POST client, number; GET ?client= lists them.
require __DIR__ . '/../config.php';

$client = substr($_REQUEST['client'] ?? '', 0, 64);
header('Content-Type: application/json');
if ($_SERVER['REQUEST_METHOD'] === 'POST') {
    usleep(1000 * min(10000, (int) ($_POST['ms'] ?? 0)));
    rows('INSERT INTO mdl_standin_writes (client, number, node, timecreated) VALUES (?, ?, ?, ?)',
        [$client, (int) ($_POST['number'] ?? 0), gethostname(), time()]);
    echo json_encode(['id' => db()->insert_id, 'node' => gethostname()]), "\n";
    exit;
}
$numbers = rows('SELECT number, COUNT(*) AS times FROM mdl_standin_writes WHERE client = ? GROUP BY number ORDER BY number', [$client]);
echo json_encode(array_map(intval(...), array_column($numbers, 'times', 'number')), JSON_FORCE_OBJECT), "\n";
