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
    'mdl_course' => 'id INT AUTO_INCREMENT PRIMARY KEY, shortname VARCHAR(255), fullname VARCHAR(254), summary TEXT, format VARCHAR(21),'
        . ' timemodified INT',
    'mdl_files' => 'id INT AUTO_INCREMENT PRIMARY KEY, contenthash CHAR(40), filename VARCHAR(255), filesize INT',
    'mdl_standin_writes' => 'id INT AUTO_INCREMENT PRIMARY KEY, client VARCHAR(64), number INT, node VARCHAR(64),'
        . ' timecreated INT, KEY (client, number)',
    'mdl_config_log' => 'id INT AUTO_INCREMENT PRIMARY KEY, name VARCHAR(100), plugin VARCHAR(100), value TEXT',
    'mdl_task_log' => 'id INT AUTO_INCREMENT PRIMARY KEY, classname VARCHAR(255), hostname VARCHAR(255), timestart INT, pid INT',
] as $table => $columns) {
    echo "-->$table\n";
    rows("CREATE TABLE $table ($columns) ENGINE=InnoDB");
    // Slow enough to be interrupted, for tests.
    usleep((int) (1000 * (float) getenv('STANDIN_INSTALL_MS')));
}
rows('INSERT INTO mdl_user (username, password, email) VALUES (?, ?, ?)',
    [$options['adminuser'], password_hash($options['adminpass'], PASSWORD_BCRYPT), $options['adminemail']]);
rows('INSERT INTO mdl_user (username, password, email) VALUES (?, ?, ?)', ['guest', hash_internal_user_password('guest'), 'root@localhost']);
rows("INSERT INTO mdl_course (shortname, fullname, format, timemodified) VALUES (?, ?, 'site', ?)",
    [$options['shortname'], $options['fullname'], time()]);
foreach (['version' => sprintf('%.2f', $version), 'allversionshash' => sha1_file(__DIR__ . '/../../version.php'), 'release' => $release, 'branch' => $branch, 'rolesactive' => '1',
    'siteidentifier' => random_string(32) . parse_url($CFG->wwwroot, PHP_URL_HOST), 'siteadmins' => '1',
    'badges_badgesalt' => 'badges' . time(), 'calendar_exportsalt' => random_string(60), 'supportemail' => $options['adminemail'],
    'geoip2file' => "$CFG->dataroot/geoip/GeoLite2-City.mmdb", 'noreplyaddress' => 'noreply@' . parse_url($CFG->wwwroot, PHP_URL_HOST),
    'lang' => $options['lang'], 'registrationpending' => '1'] as $name => $value) {
    set_config_value($name, (string) $value);
}
foreach (['mod', 'enrol'] as $type) {
    require_once "$CFG->dirroot/$type/lti/upgradelib.php";
    "{$type}_lti_verify_private_key"();
}
// Something in the file store, as a real installation leaves there.
$hash = sha1('stand-in');
$folder = "$CFG->dataroot/filedir/" . substr($hash, 0, 2) . '/' . substr($hash, 2, 2);
is_dir($folder) || mkdir($folder, $CFG->directorypermissions, true);
file_put_contents("$folder/$hash", 'stand-in');
rows('INSERT INTO mdl_files (contenthash, filename, filesize) VALUES (?, ?, ?)', [$hash, 'stand-in.txt', 8]);
echo "Installation completed successfully.\n";
exit(0);
