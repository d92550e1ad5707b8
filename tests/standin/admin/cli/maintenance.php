<?php
define('CLI_SCRIPT', true);
require __DIR__ . '/../../config.php';

$options = cli_options(['enable' => false, 'enablelater' => 0, 'enableold' => false, 'disable' => false]);
$file = "$CFG->dataroot/climaintenance.html";
if ($options['enablelater']) {
    set_config_value('maintenance_later', (string) (time() + 60 * (int) $options['enablelater']));
    echo "Site will be switched to maintenance mode in {$options['enablelater']} minutes\n";
} else if ($options['enable']) {
    file_put_contents("$file.new", "<!DOCTYPE html><title>Maintenance</title><p>This site is under maintenance.</p>\n");
    rename("$file.new", $file);
    echo "Your site has been switched to CLI maintenance mode, no web access is allowed.\n";
} else if ($options['enableold']) {
    set_config_value('maintenance_enabled', '1');
} else if ($options['disable']) {
    @unlink($file);
    set_config_value('maintenance_enabled', null);
    set_config_value('maintenance_later', null);
    echo "Maintenance mode has been disabled and your site is running normally again.\n";
} else {
    echo is_file($file) ? "Status: enabled\n" : "Status: disabled\n";
}
exit(0);
