<?php
// Compiles a list of files into OPcache. Runs in PHP-FPM, since code compiled by the command line must not get there.
// The request body is JSON: {"root": folder, "globs": [...]}; ** means any depth. Answers what was done.
declare(strict_types=1);

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
    if (preg_match('~^(.*?)/?\*\*(\.php)$~', $glob, $part)) {
        $folder = "$root/$part[1]";
        if (!is_dir($folder)) {
            continue;
        }
        $all = new RecursiveIteratorIterator(new RecursiveDirectoryIterator($folder, FilesystemIterator::SKIP_DOTS));
        foreach ($all as $path => $info) {
            if (str_ends_with($path, '.php') && !preg_match('~/(tests|fixtures|behat|vendor|node_modules)/~', $path)) {
                $files[$path] = true;
            }
        }
    } else {
        foreach (glob("$root/$glob") ?: [] as $path) {
            $files[$path] = true;
        }
    }
}

$start = hrtime(true);
$compiled = 0;
$failed = [];
foreach (array_keys($files) as $path) {
    if (opcache_is_script_cached($path)) {
        continue;
    }
    try {
        opcache_compile_file($path) ? $compiled++ : $failed[] = $path;
    } catch (Throwable $error) {
        // A file for another version of PHP, or one that is broken: the page that needs it will say so.
        $failed[] = $path;
    }
}
header('Content-Type: application/json');
echo json_encode([
    'release' => $release,
    'files' => count($files),
    'compiled' => $compiled,
    'failed' => count($failed),
    'first_failed' => $failed[0] ?? null,
    'milliseconds' => (int) ((hrtime(true) - $start) / 1e6),
]);
