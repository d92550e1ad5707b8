<?php
// Reads $CFG as Moodle does and stops where Moodle would.

global $CFG;
$CFG->dirroot = dirname(__DIR__);
$CFG->libdir = __DIR__;
defined('CLI_SCRIPT') || define('CLI_SCRIPT', false);
defined('MOODLE_INTERNAL') || define('MOODLE_INTERNAL', true);
defined('MATURITY_STABLE') || define('MATURITY_STABLE', 200);

if ((PHP_SAPI === 'cli') !== CLI_SCRIPT) {
    echo "Command line scripts and pages cannot stand in for each other\n";
    exit(1);
}
foreach (['wwwroot', 'dataroot'] as $name) {
    if (empty($CFG->$name)) {
        http_response_code(500);
        echo "Fatal error: \$CFG->$name is not configured! Exiting.\n";
        exit(1);
    }
}
if (!is_dir($CFG->dataroot) || !is_writable($CFG->dataroot)) {
    http_response_code(500);
    echo "Fatal error: \$CFG->dataroot is not writable, admin has to fix directory permissions! Exiting.\n";
    exit(1);
}
if (!CLI_SCRIPT && is_file("$CFG->dataroot/climaintenance.html")) {
    http_response_code(503);
    header('Retry-After: 300');
    header('Content-Type: text/html; charset=utf-8');
    readfile("$CFG->dataroot/climaintenance.html");
    exit;
}
if (defined('ABORT_AFTER_CONFIG')) {
    return;
}

require_once __DIR__ . '/standin.php';
require_once __DIR__ . '/moodlelib.php';
global $DB;
$DB = new standin_database();
$CFG->config_php_settings = (array) $CFG;
if (tables()) {
    $CFG->allversionshash = get_config_value('allversionshash');
}
if (!CLI_SCRIPT) {
    set_exception_handler(static function (Throwable $problem): void {
        error_log('standin: ' . $problem->getMessage());
        http_response_code(500);
        echo "Error\n";
    });
}
