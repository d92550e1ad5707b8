<?php
// What the pages and scripts share: database, settings, session, page.

defined('MOODLE_INTERNAL') || die();

function db(): mysqli {
    static $db = null;
    global $CFG;
    if ($db === null) {
        mysqli_report(MYSQLI_REPORT_ERROR | MYSQLI_REPORT_STRICT);
        $db = mysqli_init();
        $flags = empty($CFG->dboptions['ssl']) ? 0 : MYSQLI_CLIENT_SSL | MYSQLI_CLIENT_SSL_VERIFY_SERVER_CERT;
        $db->real_connect($CFG->dbhost, $CFG->dbuser, $CFG->dbpass, $CFG->dbname, (int) $CFG->dboptions['dbport'], null, $flags);
        $db->set_charset('utf8mb4');
    }
    return $db;
}

function rows(string $sql, array $values = []): array {
    $result = db()->execute_query($sql, $values);
    return $result === true ? [] : $result->fetch_all(MYSQLI_ASSOC);
}

function tables(): array {
    return array_column(rows("SHOW TABLES LIKE 'mdl\\_%'"), null);
}

function get_config_value(string $name, string $component = 'core'): ?string {
    $found = in_array($component, ['', 'core', 'moodle'])
        ? rows('SELECT value FROM mdl_config WHERE name = ?', [$name])
        : rows('SELECT value FROM mdl_config_plugins WHERE plugin = ? AND name = ?', [$component, $name]);
    return $found[0]['value'] ?? null;
}

function set_config_value(string $name, ?string $value, string $component = 'core'): void {
    $core = in_array($component, ['', 'core', 'moodle']);
    if ($value === null) {
        $core ? rows('DELETE FROM mdl_config WHERE name = ?', [$name])
            : rows('DELETE FROM mdl_config_plugins WHERE plugin = ? AND name = ?', [$component, $name]);
    } else {
        $core ? rows('REPLACE INTO mdl_config (name, value) VALUES (?, ?)', [$name, $value])
            : rows('REPLACE INTO mdl_config_plugins (plugin, name, value) VALUES (?, ?, ?)', [$component, $name, $value]);
    }
}

function site(): array {
    return rows("SELECT * FROM mdl_course WHERE format = 'site'")[0];
}

// The handler of the recipe, on what Moodle's own gives it.
function start_session(): void {
    global $CFG;
    require_once __DIR__ . '/session.php';
    (new $CFG->session_handler_class())->init();
    ini_set('session.use_strict_mode', '1');
    session_name('MoodleSession');
    session_start(['cookie_secure' => true, 'cookie_httponly' => true, 'cookie_samesite' => 'Lax', 'cookie_path' => '/']);
}

function require_login(): void {
    start_session();
    if (empty($_SESSION['user'])) {
        redirect('/login/index.php');
    }
}

function sesskey(): string {
    return $_SESSION['sesskey'] ??= bin2hex(random_bytes(8));
}

function require_sesskey(): void {
    if (!hash_equals(sesskey(), $_POST['sesskey'] ?? '')) {
        stop(403, 'Incorrect sesskey submitted, form not accepted!');
    }
}

function stop(int $code, string $text): never {
    http_response_code($code);
    header('Content-Type: text/plain; charset=utf-8');
    exit("$text\n");
}

function redirect(string $path): never {
    global $CFG;
    header('Location: ' . $CFG->wwwroot . $path, true, 303);
    exit;
}

function e(string $text): string {
    return htmlspecialchars($text, ENT_QUOTES);
}

function page(string $title, string $body): void {
    header('Content-Type: text/html; charset=utf-8');
    header('Cache-Control: private, no-store');
    $site = e(site()['fullname']);
    $who = empty($_SESSION['user'])
        ? '<a href="/login/index.php">Log in</a>'
        : 'You are logged in as ' . e($_SESSION['user']) . ' · <a href="/my/">Dashboard</a>'
            . ' · <a href="/login/logout.php?sesskey=' . sesskey() . '">Log out</a>';
    $node = e(gethostname());
    $title = e($title);
    echo "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>$title | $site</title>",
        "<link rel=\"stylesheet\" href=\"/theme/style.css\"></head>\n<body><header><a href=\"/\">$site</a> <span>$who</span></header>\n",
        "<main><h1>$title</h1>\n$body</main>\n<footer>Stand-in for Moodle, served by <span id=\"node\">$node</span></footer></body></html>\n";
}

function cli_options(array $known): array {
    $options = $known + ['help' => false];
    foreach (array_slice($_SERVER['argv'], 1) as $word) {
        $short = ['-h' => 'help', '-k' => 'keep-alive', '-i' => 'ignorelimits', '-f' => 'failures', '-l' => 'taskslimit',
            '-t' => 'type', '-v' => 'verbose'];
        if (preg_match('/\A--([a-z-]+)(?:=(.*))?\z/s', $word, $match) && array_key_exists($match[1], $options)) {
            $options[$match[1]] = $match[2] ?? true;
            $last = $match[1];
        } else if (isset($short[$word]) && array_key_exists($short[$word], $options)) {
            $options[$last = $short[$word]] = true;
        } else if (isset($last) && $options[$last] === true && $word !== '' && $word[0] !== '-') {
            $options[$last] = $word;
        } else {
            cli_error("Unrecognised options:\n  $word\nPlease use --help option.");
        }
    }
    if ($options['help']) {
        echo 'Options: --', implode(' --', array_keys($options)), "\n";
        exit(0);
    }
    return $options;
}

function cli_error(string $text, int $code = 1): never {
    fwrite(STDERR, "$text\n");
    exit($code);
}
