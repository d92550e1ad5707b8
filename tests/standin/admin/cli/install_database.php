<?php
define('CLI_SCRIPT', true);
require __DIR__ . '/../../config.php';

$options = cli_options(['lang' => 'en', 'adminuser' => 'admin', 'adminpass' => '', 'adminemail' => '', 'agree-license' => false,
    'fullname' => '', 'shortname' => '', 'summary' => '', 'supportemail' => '']);
if (tables()) {
    cli_error('Database tables already present; CLI installation cannot continue.');
}
if (!$options['agree-license']) {
    cli_error('You have to agree to the license. --help prints out the help');
}
if ($options['adminpass'] === '' || $options['adminpass'] === true) {
    cli_error('You have to specify admin password. --help prints out the help');
}
require __DIR__ . '/../../version.php';
foreach ([
    'mdl_config' => 'name VARCHAR(191) PRIMARY KEY, value TEXT',
    'mdl_config_plugins' => 'plugin VARCHAR(90), name VARCHAR(90), value TEXT, PRIMARY KEY (plugin, name)',
    'mdl_user' => 'id INT AUTO_INCREMENT PRIMARY KEY, username VARCHAR(100) UNIQUE, password VARCHAR(255), email VARCHAR(100),'
        . ' lastlogin INT NOT NULL DEFAULT 0, lastaccess INT NOT NULL DEFAULT 0',
    'mdl_course' => 'id INT AUTO_INCREMENT PRIMARY KEY, shortname VARCHAR(255), fullname VARCHAR(254), format VARCHAR(21),'
        . ' timemodified INT',
    'mdl_files' => 'id INT AUTO_INCREMENT PRIMARY KEY, contenthash CHAR(40), filename VARCHAR(255), filesize INT',
    'mdl_standin_writes' => 'id INT AUTO_INCREMENT PRIMARY KEY, client VARCHAR(64), number INT, node VARCHAR(64),'
        . ' timecreated INT, KEY (client, number)',
    'mdl_task_log' => 'id INT AUTO_INCREMENT PRIMARY KEY, classname VARCHAR(255), hostname VARCHAR(255), timestart INT, pid INT',
] as $table => $columns) {
    echo "-->$table\n";
    rows("CREATE TABLE $table ($columns) ENGINE=InnoDB");
    // Slow enough to be interrupted, for tests.
    usleep((int) (1000 * (float) getenv('STANDIN_INSTALL_MS')));
}
rows('INSERT INTO mdl_user (username, password, email) VALUES (?, ?, ?)',
    [$options['adminuser'], password_hash($options['adminpass'], PASSWORD_BCRYPT), $options['adminemail']]);
rows("INSERT INTO mdl_course (shortname, fullname, format, timemodified) VALUES (?, ?, 'site', ?)",
    [$options['shortname'], $options['fullname'], time()]);
foreach (['version' => sprintf('%.2f', $version), 'release' => $release, 'branch' => $branch, 'rolesactive' => '1',
    'siteidentifier' => bin2hex(random_bytes(16)), 'lang' => $options['lang'], 'registrationpending' => '1'] as $name => $value) {
    set_config_value($name, (string) $value);
}
echo "Installation completed successfully.\n";
exit(0);
