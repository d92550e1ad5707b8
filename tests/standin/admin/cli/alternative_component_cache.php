<?php
define('CLI_SCRIPT', true);
define('ABORT_AFTER_CONFIG', true);
require __DIR__ . '/../../config.php';
require_once __DIR__ . '/../../lib/standin.php';

$options = cli_options(['file' => false, 'rebuild' => false, 'print' => false]);
$content = "<?php\nreturn [];\n";
if ($options['print']) {
    echo $content;
    exit(0);
}
$target = $options['rebuild'] ? ($CFG->alternative_component_cache ?? '') : $options['file'];
if (!$target) {
    cli_error('config.php does not contain $CFG->alternative_component_cache setting', 2);
}
file_put_contents($target, $content) || cli_error("Error writing to $target");
echo "File $target was updated\n";
exit(0);
