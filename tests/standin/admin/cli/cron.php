<?php
define('CLI_SCRIPT', true);
require __DIR__ . '/../../config.php';

$options = cli_options(['keep-alive' => '0', 'stop' => false, 'list' => false, 'enable' => false, 'disable' => false,
    'disable-wait' => false, 'force' => false]);
if ($options['list']) {
    foreach (rows('SELECT * FROM mdl_task_log WHERE timestart = 0') as $task) {
        echo "$task[pid] $task[hostname] scheduled $task[timestart] $task[classname]\n";
    }
    exit(0);
}
if ($options['enable'] || $options['disable'] || $options['disable-wait']) {
    set_config_value('cron_enabled', $options['enable'] ? '1' : '0');
    echo 'Cron has been ', $options['enable'] ? 'enabled' : 'disabled', " for the site.\n";
    exit(0);
}
if (!$options['force'] && get_config_value('cron_enabled') === '0') {
    echo "Cron is disabled. Use --force to override.\n";
    exit(1);
}
if (is_file("$CFG->dataroot/climaintenance.html")) {
    echo "CLI maintenance mode active, cron execution suspended.\n";
    exit(1);
}
rows('INSERT INTO mdl_task_log (classname, hostname, timestart, pid) VALUES (?, ?, ?, ?)',
    ['standin\task\tick', gethostname(), time(), getmypid()]);
set_config_value('lastcronstart', (string) time(), 'tool_task');
echo "Cron run completed correctly\n";
exit(0);
