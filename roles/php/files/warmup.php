<?php
// Brings the files of a release into OPcache. Runs in PHP-FPM, since code compiled by the command line must not get there.
//
// With a JSON body {"root": folder, "globs": [...]} (** means any depth, RELEASE the release's name) it loads what the file
// cache has and answers with "missing": the files that were never compiled. Those are compiled by including them, one request
// for each (MOODLE_FLEET_FILE).
// opcache_compile_file() would not do for them: it declares no class before the file is executed, so the compiled code behaves
// differently where files include each other, as Moodle's do ("Class ... not found"), and the file cache would keep it.
declare(strict_types=1);

if (isset($_SERVER['MOODLE_FLEET_FILE'])) {
    // Nearly every file ends here at once, for want of a tenant or of MOODLE_INTERNAL. Compiled it is by then.
    error_reporting(0);
    ini_set('log_errors', '0');
    include $_SERVER['MOODLE_FLEET_FILE'];
    exit;
}

set_time_limit(100);
$job = json_decode((string) file_get_contents('php://input'), true);
$root = realpath((string) ($job['root'] ?? ''));
if ($root === false) {
    http_response_code(500);
    exit(json_encode(['error' => 'there is no release at ' . ($job['root'] ?? '')]));
}
$release = basename($root);
// From Moodle 5.1 the web root is a folder in the tree.
$root = is_dir("$root/public") ? "$root/public" : $root;

$files = [];
foreach ($job['globs'] ?? [] as $glob) {
    // The recipe's own files have a path of their own.
    $glob = str_starts_with($glob, '/') ? str_replace('RELEASE', $release, $glob) : "$root/$glob";
    if (preg_match('~^(.*?)/?\*\*(\.php)$~', $glob, $part)) {
        foreach (glob($part[1], GLOB_ONLYDIR) ?: [] as $folder) {
            $all = new RecursiveIteratorIterator(new RecursiveDirectoryIterator($folder, FilesystemIterator::SKIP_DOTS));
            foreach ($all as $path => $info) {
                if (str_ends_with($path, '.php') && !preg_match('~/(tests|fixtures|behat|vendor|node_modules|cli)/~', $path)) {
                    $files[$path] = true;
                }
            }
        }
    } else {
        foreach (glob($glob) ?: [] as $path) {
            $files[$path] = true;
        }
    }
}

// The file cache has a folder for each build of PHP. Ours is the one that gets a copy of this file's neighbour, which is
// dropped from the others at every start.
$cache = (string) ini_get('opcache.file_cache');
include __DIR__ . '/warmup-mark.php';
$mark = glob("$cache/*" . __DIR__ . '/warmup-mark.php.bin') ?: [];
$cache = count($mark) === 1 ? substr($mark[0], 0, -strlen(__DIR__ . '/warmup-mark.php.bin')) : '';

$start = hrtime(true);
$loaded = 0;
$missing = [];
foreach (array_keys($files) as $path) {
    if (opcache_is_script_cached($path)) {
        continue;
    }
    if ($cache !== '' && is_file("$cache$path.bin") && opcache_compile_file($path)) {
        $loaded++;
    } else {
        $missing[] = $path;
    }
}
http_response_code(200);
header('Content-Type: application/json');
echo json_encode([
    'release' => $release,
    'files' => count($files),
    'loaded' => $loaded,
    'missing' => $missing,
    'milliseconds' => (int) ((hrtime(true) - $start) / 1e6),
]);
