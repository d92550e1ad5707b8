<?php
// What the dispatcher asks of all tenants' databases, each with the tenant's own account. Written by Ansible; changes made here are
// lost.
//   list                       the active tenants, each with the number of its own Unix user, null if it has none
//   backlog {TENANT: SINCE}    what is due and has not started. What was due before SINCE, the start of the last complete run, was
//                              passed over by Moodle itself, as tasks of plugins that are switched off are
//   fence ADDRESS...           ends the tenants' connections from nodes that lost the lease, and with them their tasks and locks
// Answers on standard output, with one JSON object.

$map = require '/etc/moodle-fleet/tenants.php';
if (is_readable('/etc/moodle-fleet/tenants.own')) {
    $map['tenants'] += json_decode(file_get_contents('/etc/moodle-fleet/tenants.own'), true)['tenants'];
}
$active = array_filter($map['tenants'], static fn(array $tenant): bool => $tenant['state'] === 'active');
mysqli_report(MYSQLI_REPORT_ERROR | MYSQLI_REPORT_STRICT);

$connect = static function (array $tenant) use ($map): mysqli {
    $connection = mysqli_init();
    $connection->options(MYSQLI_OPT_CONNECT_TIMEOUT, 3);
    $connection->options(MYSQLI_OPT_READ_TIMEOUT, 10);
    $tls = !empty($tenant['database_tls'] ?? $map['fleet']['database_tls'] ?? false);
    if ($tls) {
        $connection->options(MYSQLI_OPT_SSL_VERIFY_SERVER_CERT, true);
        $connection->ssl_set(null, null, '/etc/ssl/certs/ca-certificates.crt', null, null);
    }
    $connection->real_connect(
        $tenant['dbhost'] ?? $map['fleet']['dbhost'], $tenant['database_user'], $tenant['database_password'], $tenant['database'],
        $tenant['dbport'] ?? $map['fleet']['dbport'], null, $tls ? MYSQLI_CLIENT_SSL : 0
    );
    return $connection;
};

$what = array_slice($argv, 1);
$answer = [];
switch (array_shift($what)) {
    case 'list':
        $answer = array_map(static fn(array $tenant): ?int => $tenant['uid'] ?? null, $active);
        break;

    case 'backlog':
        foreach (json_decode($what[0], true) as $name => $since) {
            if (!isset($active[$name])) {
                continue;
            }
            try {
                $connection = $connect($active[$name]);
                // As Moodle itself looks for what it has to run.
                $statement = $connection->prepare(
                    'SELECT (SELECT COUNT(*) FROM mdl_task_scheduled WHERE disabled = 0 AND timestarted IS NULL'
                    . '         AND nextruntime < UNIX_TIMESTAMP() AND nextruntime >= ?) AS scheduled,'
                    . ' (SELECT MIN(nextruntime) FROM mdl_task_scheduled WHERE disabled = 0 AND timestarted IS NULL'
                    . '         AND nextruntime < UNIX_TIMESTAMP() AND nextruntime >= ?) AS oldest_scheduled,'
                    . ' COUNT(*) AS adhoc, MIN(nextruntime) AS oldest_adhoc, UNIX_TIMESTAMP() AS now,'
                    . ' (SELECT COUNT(*) FROM mdl_task_scheduled WHERE faildelay > 0)'
                    . '     + (SELECT COUNT(*) FROM mdl_task_adhoc WHERE faildelay > 0) AS failing'
                    . ' FROM mdl_task_adhoc WHERE nextruntime < UNIX_TIMESTAMP() AND timestarted IS NULL'
                    . ' AND (attemptsavailable > 0 OR attemptsavailable IS NULL)'
                );
                $statement->execute([$since, $since]);
                $row = $statement->get_result()->fetch_assoc();
                $oldest = array_filter([$row['oldest_scheduled'], $row['oldest_adhoc']]);
                $answer[$name] = [
                    'scheduled' => (int) $row['scheduled'],
                    'adhoc' => (int) $row['adhoc'],
                    'failing' => (int) $row['failing'],
                    'oldest' => $oldest ? $row['now'] - min($oldest) : 0,
                ];
                $connection->close();
            } catch (mysqli_sql_exception $exception) {
                $answer[$name] = ['error' => $exception->getMessage()];
            }
        }
        break;

    case 'fence':
        foreach ($map['tenants'] as $name => $tenant) {
            try {
                $connection = $connect($tenant);
                // An account sees its own connections, and may end them.
                $ended = 0;
                foreach ($connection->query('SELECT ID, HOST FROM information_schema.PROCESSLIST WHERE ID <> CONNECTION_ID()') as $row) {
                    if (in_array(substr($row['HOST'], 0, strrpos($row['HOST'], ':')), $what, true)) {
                        try {
                            $connection->query('KILL ' . (int) $row['ID']);
                            $ended++;
                        } catch (mysqli_sql_exception) {
                            // It has just ended by itself.
                        }
                    }
                }
                $connection->close();
                if ($ended) {
                    $answer[$name] = ['ended' => $ended];
                }
            } catch (mysqli_sql_exception $exception) {
                $answer[$name] = ['error' => $exception->getMessage()];
            }
        }
        break;
}
fwrite(STDOUT, json_encode($answer ?: (object) [], JSON_THROW_ON_ERROR));
