<?php
// On a benchmark's own web nodes only: config.php comes here before it starts Moodle. The request's header says how
// sessions and caches are kept; without it, all is as the recipe has it. Each variant has its own keys.
(static function (stdClass $cfg): void {
    $name = preg_replace('/[^a-z-]/', '', $_SERVER['HTTP_X_BENCH_VARIANT'] ?? '');
    $variants = [
        // name => in front of Redis, igbinary, MUC's session caches in Redis
        'redis' => ['local' => 'no', 'igbinary' => false, 'sessions' => true],
        'igbinary' => ['local' => 'no', 'igbinary' => true, 'sessions' => true],
        'apcu' => ['local' => 'may', 'igbinary' => false, 'sessions' => true],
        'apcu-igbinary' => ['local' => 'may', 'igbinary' => true, 'sessions' => true],
        'session' => ['local' => 'no', 'igbinary' => true, 'sessions' => false],
        'core' => ['local' => 'may', 'igbinary' => true, 'sessions' => false],
        'control' => ['local' => 'all', 'igbinary' => true, 'sessions' => false],
    ];
    if ($name === 'copied') {
        // The recipe without the strings of the release.
        $cfg->moodle_fleet_strings .= '-none';
        $cfg->moodle_fleet_cache['localprefix'] .= "$name:";
    }
    if (!isset($variants[$name])) {
        return;
    }
    $cfg->moodle_fleet_bench = $variants[$name];
    $cfg->session_redis_serializer_use_igbinary = $variants[$name]['igbinary'];
    $cfg->session_redis_prefix .= "$name:";
    $cfg->moodle_fleet_cache['prefix'] .= "$name:";
    $cfg->moodle_fleet_cache['localprefix'] .= "$name:";
    $cfg->alternative_cache_factory_class = 'moodle_fleet_bench_cache_factory';
    spl_autoload_register(static function (string $class): void {
        if ($class === 'moodle_fleet_bench_cache_factory') {
            require '/usr/lib/moodle-fleet/cache.php';
            require '/usr/lib/moodle-fleet/bench-cache.php';
        }
    });
})($CFG);
