<?php
// One configuration for all tenants of the fleet. Written by Ansible; changes made here are lost.
// It holds no secret: what differs between tenants and fleets is in tenants.php beside it.
// Every release has a config.php of one line that sets $moodlefleetroot and comes here.

unset($CFG);
global $CFG;
$CFG = new stdClass();

(static function (stdClass $cfg, string $root): void {
    // A template of new sites is installed with a map of its own, and a tenant with a Unix user of its own has one, that alone it can read.
    $file = getenv('MOODLE_FLEET_TENANTS') ?: __DIR__ . '/tenants.php';
    $own = __DIR__ . '/tenants/' . basename((string) getenv('MOODLE_TENANT')) . '.php';
    $map = require PHP_SAPI === 'cli' && !getenv('MOODLE_FLEET_TENANTS') && is_file($own) ? $own : $file;
    $fleet = $map['fleet'];
    $release = basename($root);

    // Which tenant? On the web the exact host name says it, on the command line MOODLE_TENANT.
    if (PHP_SAPI === 'cli') {
        $name = (string) getenv('MOODLE_TENANT');
        if (!isset($map['tenants'][$name])) {
            $why = $name === '' ? 'MOODLE_TENANT is not set' : "MOODLE_TENANT names the unknown tenant '$name'";
            fwrite(STDERR, "moodle-fleet: $why; set it to the name of one of this fleet's tenants.\n");
            exit(78);
        }
    } else {
        $host = strtolower(preg_replace('/:[0-9]+\z/', '', $_SERVER['HTTP_HOST'] ?? ''));
        $name = $map['hosts'][$host] ?? null;
        if ($name === null) {
            http_response_code(404);
            header('Content-Type: text/plain');
            exit("Not found\n");
        }
        // No code of the tenant runs, nothing of it is read.
        if ($map['tenants'][$name]['state'] === 'suspended') {
            http_response_code(503);
            header('Retry-After: 3600');
            header('Cache-Control: no-store');
            header('Content-Type: text/html; charset=utf-8');
            readfile($fleet['library'] . '/suspended.html');
            exit;
        }
        // The site's other names lead to its address. A form that was sent to one of them is sent there again.
        $wwwroot = $map['tenants'][$name]['wwwroot'];
        if ($host !== parse_url($wwwroot, PHP_URL_HOST)) {
            $get = in_array($_SERVER['REQUEST_METHOD'] ?? 'GET', ['GET', 'HEAD'], true);
            header('Location: ' . $wwwroot . '/' . ltrim($_SERVER['REQUEST_URI'] ?? '/', '/'), true, $get ? 301 : 308);
            header('Cache-Control: max-age=3600');
            exit;
        }
    }
    $tenant = $map['tenants'][$name];
    // What PHP logs from here on is this tenant's, and the log server files it under its name.
    openlog("tenant-$name", LOG_PID, LOG_LOCAL6);

    $cfg->dbtype = $fleet['dbtype'];
    $cfg->dblibrary = 'native';
    $cfg->dbhost = $tenant['dbhost'] ?? $fleet['dbhost'];
    $cfg->dbname = $tenant['database'];
    $cfg->dbuser = $tenant['database_user'];
    $cfg->dbpass = $tenant['database_password'];
    $cfg->prefix = 'mdl_';
    $cfg->dboptions = [
        'dbpersist' => false,
        'dbport' => $tenant['dbport'] ?? $fleet['dbport'],
        'dbsocket' => false,
        'dbcollation' => 'utf8mb4_unicode_ci',
    ] + (empty($tenant['database_tls'] ?? $fleet['database_tls'] ?? false) ? [] : ['ssl' => 'verify-full']);

    $cfg->wwwroot = $tenant['wwwroot'];
    $cfg->admin = 'admin';

    // TLS ends at the balancer, which forwards Host: so no "reverseproxy". Its word about the
    // visitor's address counts, and the port visitors see is the one in wwwroot.
    $cfg->sslproxy = true;
    $cfg->reverseproxy = false;
    $cfg->getremoteaddrconf = 1;
    $cfg->reverseproxyignore = implode(',', $fleet['balancer_networks']);
    if (PHP_SAPI !== 'cli') {
        $_SERVER['SERVER_PORT'] = (string) (parse_url($cfg->wwwroot, PHP_URL_PORT) ?? 443);
    }

    // Shared by all nodes, one of each per tenant: an installation empties them.
    $shared = $fleet['shared_root'] . '/' . $name;
    $cfg->dataroot = "$shared/data";
    $cfg->cachedir = "$shared/cache";
    $cfg->tempdir = "$shared/temp";
    $cfg->backuptempdir = "$shared/backup";
    // With a Unix user of its own the outermost folder is the gate, which nginx alone may pass as well.
    $cfg->directorypermissions = isset($tenant['uid']) ? 0755 : 0750;
    // On the node's own disk.
    $local = $fleet['local_root'] . '/' . $name;
    $cfg->localcachedir = "$local/localcache";
    $cfg->localrequestdir = "$local/localrequest";
    $component = $fleet['local_root'] . "/component/$release/component.php";
    if (is_file($component)) {
        $cfg->alternative_component_cache = $component;
    }

    // Of which versions this code is.
    $cfg->moodle_fleet_versions = $fleet['local_root'] . "/component/$release/versions.php";

    // nginx delivers files: the internal locations are bound to the tenant of the host there.
    $cfg->xsendfile = 'X-Accel-Redirect';
    $cfg->xsendfilealiases = [
        '/dataroot/' => $cfg->dataroot,
        '/cachedir/' => $cfg->cachedir,
        '/localcachedir/' => $cfg->localcachedir,
        '/tempdir/' => $cfg->tempdir,
    ];

    // Sessions live in Redis, behind the tenant's own prefix and, where the server knows users, its own user. A lock of a node that died
    // expires before those who wait for it give up.
    $password = $fleet['cache_password'] ?? '';
    $redisauth = $password !== '' ? $password : [$tenant['redis_user'], $tenant['redis_password']];
    $redistls = empty($fleet['cache_tls']) ? [] : ['cafile' => '/etc/ssl/certs/ca-certificates.crt'];
    $cfg->session_handler_class = 'moodle_fleet_session';
    $cfg->session_redis_host = $fleet['redis_host'];
    $cfg->session_redis_port = $fleet['redis_port'];
    $cfg->session_redis_auth = $redisauth;
    $cfg->session_redis_encrypt = $redistls;
    $cfg->session_redis_prefix = "t:$name:s:";
    $cfg->session_redis_serializer_use_igbinary = true;
    $cfg->session_redis_lock_expire = $fleet['session_lock_expire'];
    $cfg->session_redis_acquire_lock_timeout = $fleet['session_lock_timeout'];
    $cfg->session_redis_acquire_lock_retry = 100;
    $cfg->lock_factory = $fleet['lock_factory'];

    // Moodle's cache layer is configured from code, see cache.php.
    $cfg->alternative_cache_factory_class = 'moodle_fleet_cache_factory';
    $cfg->moodle_fleet_cache = [
        'definitions' => $fleet['local_root'] . "/component/$release/definitions.php",
        'server' => $fleet['muc_host'] . ':' . $fleet['muc_port'],
        'password' => $redisauth,
        'tls' => $redistls,
        'prefix' => "t:$name:m:",
        // What is kept in a node's memory belongs to one release: some of it depends on code alone.
        'localprefix' => "t:$name:$release:",
        'localttl' => $fleet['local_cache_ttl'],
        'siteidentifier' => md5("moodle-fleet:$name"),
    ];
    $files = ['moodle_fleet_cache_factory' => 'cache.php', 'moodle_fleet_session' => 'session.php'];
    // What the release brings for its pages.
    $cfg->moodle_fleet_output = $fleet['local_root'] . "/component/$release/output";
    $cfg->moodle_fleet_strings = $fleet['local_root'] . "/component/$release/strings";
    if (PHP_SAPI !== 'cli' && is_file("$cfg->moodle_fleet_output/sources.php")) {
        $files += ['core\output\mustache_filesystem_loader' => 'templates.php', 'Mustache_Cache_FilesystemCache' => 'templates.php'];
    }
    spl_autoload_register(static function (string $class) use ($fleet, $files): void {
        if (isset($files[$class])) {
            require $fleet['library'] . '/' . $files[$class];
        }
    });

    if (PHP_SAPI !== 'cli') {
        require $fleet['library'] . '/output.php';
    }

    // Code comes from releases only, and programs from the recipe only.
    $cfg->disableupdateautodeploy = true;
    $cfg->disableupdatenotifications = true;
    $cfg->preventexecpath = true;
    $cfg->uninstallclionly = true;
    // PHP opens files of this tenant, of the code and of the system alone; nobody can lift that in a running request. The
    // programs it may start are not held by it.
    if ($fleet['confine'] ?? true) {
        // Only what exists can be allowed.
        is_dir($local) || @mkdir($local, 0750, true);
        ini_set('open_basedir', implode(':', [
            "$root/", "$shared/", "$local/", $fleet['local_root'] . "/component/$release/", $fleet['library'] . '/',
            (ini_get('upload_tmp_dir') ?: sys_get_temp_dir()) . '/', '/usr/bin/', '/usr/share/', '/etc/ssl/certs/', '/dev/urandom',
        ]));
    }
    $cfg->upgradekey = hash('sha256', 'upgradekey:' . $tenant['database_password']);
})($CFG, $moodlefleetroot);

// From Moodle 5.1 the web root is a folder in the release.
require_once is_file("$moodlefleetroot/lib/setup.php")
    ? "$moodlefleetroot/lib/setup.php"
    : "$moodlefleetroot/public/lib/setup.php";

// Moodle itself keeps no visitor from code that does not fit the database, in either direction. During a release a request that
// was led to the wrong pool ends here; so does everybody after code that was changed without an upgrade.
if (PHP_SAPI !== 'cli' && !empty($CFG->allversionshash) && is_file($CFG->moodle_fleet_versions)
        && $CFG->allversionshash !== require $CFG->moodle_fleet_versions) {
    http_response_code(503);
    header('Retry-After: 60');
    header('Cache-Control: no-store');
    header('Content-Type: text/plain; charset=utf-8');
    exit("This site is being brought up to date. Please try again in a minute.\n");
}
