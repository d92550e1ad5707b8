<?php
define('CLI_SCRIPT', true);
require __DIR__ . '/../../config.php';

$options = cli_options(['type' => 'status', 'filter' => '', 'verbose' => false]);
require __DIR__ . '/../../version.php';
if (get_config_value('version') !== sprintf('%.2f', $version)) {
    echo "CRITICAL: An upgrade is pending\n";
    exit(2);
}
echo "OK: All 1 checks are OK\n";
exit(0);
