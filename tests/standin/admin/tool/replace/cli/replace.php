<?php
define('CLI_SCRIPT', true);
require __DIR__ . '/../../../../config.php';

$options = cli_options(['search' => null, 'replace' => null, 'skiptables' => '', 'shorten' => false, 'non-interactive' => false]);
if ($options['search'] === null || $options['replace'] === null || !$options['non-interactive']) {
    cli_error('--search, --replace and --non-interactive are needed');
}
// As Moodle: content, but no settings.
foreach (['mdl_course' => ['fullname', 'summary']] as $table => $columns) {
    foreach ($columns as $column) {
        rows("UPDATE $table SET $column = REPLACE($column, ?, ?)", [$options['search'], $options['replace']]);
    }
}
echo "Success\n";
exit(0);
