<?php
define('CLI_SCRIPT', true);
require __DIR__ . '/../../config.php';

$options = cli_options(['execute' => false, 'keep-alive' => '0', 'ignorelimits' => false, 'failed' => false, 'id' => null,
    'classname' => null, 'taskslimit' => null, 'force' => false]);
if ($options['execute'] || $options['id'] || $options['classname'] || $options['failed']) {
    echo "Ran 0 adhoc tasks found\n";
}
exit(0);
