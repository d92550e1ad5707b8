<?php
define('CLI_SCRIPT', true);
require __DIR__ . '/../../config.php';

cli_options(['muc' => false, 'courses' => '', 'theme' => false, 'lang' => false, 'js' => false, 'filter' => false, 'other' => false]);
set_config_value('localcachedirpurged', (string) time());
foreach (glob("$CFG->cachedir/*") as $file) {
    is_file($file) && unlink($file);
}
exit(0);
