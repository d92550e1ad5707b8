<?php
// Moodle's cache layer (MUC), configured from code for a fleet. Written by Ansible; changes made here are lost.
//
// The configuration is the same on every node and never written to a file: what is cached where
// depends on the release alone, so purging, upgrading or installing cannot change it, and a node
// never sees another one's half-written configuration.
//   application caches   Redis, behind the tenant's own user and prefix, with copies on the node: cache_store.php
//   session caches       in the session itself, request caches in memory: Moodle's own defaults

defined('MOODLE_INTERNAL') || die();

class moodle_fleet_cache_factory extends \core_cache\factory {
    public function create_config_instance($writer = false) {
        $class = moodle_fleet_cache_config::class;
        if (!isset($this->configs[$class])) {
            $this->configs[$class] = new $class();
            $this->configs[$class]->load();
        }
        $this->set_state(self::STATE_READY);
        return $this->configs[$class];
    }

    public static function get_disabled_writer(): \core_cache\config_writer {
        return new moodle_fleet_cache_config();
    }
}

class moodle_fleet_cache_config extends \core_cache\config_writer {
    protected function include_configuration() {
        global $CFG;
        $settings = $CFG->moodle_fleet_cache;

        // The list of definitions is made with the release; without it, look for them each time.
        $definitions = is_file($settings['definitions'])
            ? require $settings['definitions']
            : self::locate_definitions();

        $stores = self::get_default_stores();
        unset($stores['default_application']);
        $redis = [
            'server' => $settings['server'],
            'prefix' => $settings['prefix'],
            'password' => $settings['password'],
            'serializer' => \Redis::SERIALIZER_IGBINARY,
            'compressor' => 0,
            'lockwait' => 60,
            'locktimeout' => 90,
            'localprefix' => $settings['localprefix'],
            'localttl' => $settings['localttl'],
        ] + (empty($settings['tls']) ? [] : ['encryption' => true] + $settings['tls']);
        require_once "$CFG->dirroot/cache/stores/redis/lib.php";
        require_once __DIR__ . '/cache_store.php';
        $stores['redis'] = [
            'name' => 'redis',
            'plugin' => 'redis',
            'configuration' => $redis,
            'features' => \cachestore_redis::get_supported_features($redis),
            'modes' => \cachestore_redis::get_supported_modes($redis),
            'default' => true,
        ];
        return [
            'siteidentifier' => $settings['siteidentifier'],
            'stores' => $stores,
            'modemappings' => [
                ['mode' => \core_cache\store::MODE_APPLICATION, 'store' => 'redis', 'sort' => -1],
                ['mode' => \core_cache\store::MODE_SESSION, 'store' => 'default_session', 'sort' => -1],
                ['mode' => \core_cache\store::MODE_REQUEST, 'store' => 'default_request', 'sort' => -1],
            ],
            'definitions' => $definitions,
            'definitionmappings' => [],
            // Redis locks by itself; this is asked by nothing but has to be there.
            'locks' => [
                'default_file_lock' => [
                    'name' => 'cachelock_file_default',
                    'type' => 'cachelock_file',
                    'dir' => 'filelocks',
                    'default' => true,
                ],
            ],
        ];
    }

    public function load($configuration = false) {
        $loaded = parent::load($configuration);
        $this->configstores['redis']['class'] = moodle_fleet_cache_store::class;
        return $loaded;
    }

    protected function config_save() {
        // Nothing to keep: the configuration is this code.
    }

    public function update_site_identifier($siteidentifier) {
        // Prefixes tell the tenants apart already; a fixed value keeps all nodes of one mind.
        return $this->siteidentifier;
    }
}
