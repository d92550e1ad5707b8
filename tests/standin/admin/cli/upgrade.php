<?php
define('CLI_SCRIPT', true);
require __DIR__ . '/../../config.php';

$options = cli_options(['non-interactive' => false, 'allow-unstable' => false, 'is-pending' => false,
    'is-maintenance-required' => false, 'maintenance' => true, 'lang' => '', 'verbose-settings' => false,
    'set-ui-upgrade-lock' => false, 'unset-ui-upgrade-lock' => false]);
if (!tables()) {
    cli_error('Database is not yet installed.', 2);
}
require __DIR__ . '/../../version.php';
$new = sprintf('%.2f', $version);
$old = get_config_value('version');
if ((float) $old > (float) $new) {
    cli_error("Cannot downgrade from $old to $new.");
}
$pending = $old !== $new;
if ($options['is-pending']) {
    echo $pending ? "An upgrade is pending.\n" : "No upgrade is pending.\n";
    exit($pending ? 2 : 0);
}
if ($options['is-maintenance-required']) {
    exit($pending ? 2 : 3);
}
if (!$pending) {
    echo "No upgrade needed for the installed version $release ($new).\n";
    exit(0);
}
// What a release of the tests does to the database.
if (is_file($step = __DIR__ . '/../../local/upgrade.php')) {
    require $step;
}
set_config_value('version', $new);
set_config_value('allversionshash', sha1_file(__DIR__ . '/../../version.php'));
set_config_value('release', $release);
echo "Command line upgrade from $old to $new completed successfully.\n";
exit(0);
