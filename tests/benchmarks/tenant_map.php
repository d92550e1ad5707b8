<?php
// Finds the tenant again and again, with the recipe's config.php up to where it starts Moodle, inside PHP-FPM:
// {"folder": "…", "hosts": […], "times": 2000} → microseconds for each time.
$job = json_decode((string) file_get_contents('php://input'), true);
$times = $job['times'];
$hosts = $job['hosts'];
$moodlefleetroot = '/srv/moodle/releases/none';
$file = $job['folder'] . '/config.php';
require $file;
$start = hrtime(true);
for ($i = 0; $i < $times; $i++) {
    $_SERVER['HTTP_HOST'] = $hosts[$i % count($hosts)];
    require $file;
}
$each = (hrtime(true) - $start) / 1000 / $times;
foreach (spl_autoload_functions() as $function) {
    spl_autoload_unregister($function);
}
header('Content-Type: application/json');
echo json_encode(['microseconds' => $each, 'wwwroot' => $CFG->wwwroot, 'memory' => memory_get_peak_usage()]);
