<?php
define('CLI_SCRIPT', true);
require __DIR__ . '/../../config.php';

$options = cli_options(['component' => 'core', 'name' => null, 'set' => null, 'unset' => false, 'json' => false,
    'shell-arg' => false, 'no-eol' => false]);
if ($options['unset'] || $options['set'] !== null) {
    if ($options['name'] === null) {
        cli_error('Missing configuration variable name', 2);
    }
    if ($options['component'] === 'core' && property_exists($CFG, $options['name'])) {
        cli_error('The configuration variable is hard-set in the config.php, unable to change.', 4);
    }
    set_config_value($options['name'], $options['unset'] ? null : $options['set'], $options['component']);
    exit(0);
}
if ($options['name'] !== null) {
    $value = get_config_value($options['name'], $options['component']);
    if ($value === null) {
        cli_error('No such configuration variable found.', 3);
    }
    echo $options['json'] ? json_encode($value) : $value, $options['no-eol'] ? '' : "\n";
    exit(0);
}
$all = $options['component'] === 'core'
    ? rows('SELECT name, value FROM mdl_config')
    : rows('SELECT name, value FROM mdl_config_plugins WHERE plugin = ?', [$options['component']]);
$all = array_column($all, 'value', 'name');
if ($options['json']) {
    echo json_encode($all), "\n";
} else {
    foreach ($all as $name => $value) {
        echo "$name\t$value\n";
    }
}
exit(0);
