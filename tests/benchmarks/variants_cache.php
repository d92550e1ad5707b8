<?php
// The recipe's cache configuration with a measure left out; see variants.php.
defined('MOODLE_INTERNAL') || die();

class moodle_fleet_bench_cache_factory extends moodle_fleet_cache_factory {
    public function create_config_instance($writer = false) {
        $class = moodle_fleet_bench_cache_config::class;
        if (!isset($this->configs[$class])) {
            $this->configs[$class] = new $class();
            $this->configs[$class]->load();
        }
        $this->set_state(self::STATE_READY);
        return $this->configs[$class];
    }
}

class moodle_fleet_bench_cache_config extends moodle_fleet_cache_config {
    protected function include_configuration() {
        global $CFG;
        $bench = $CFG->moodle_fleet_bench;
        $configuration = parent::include_configuration();
        $redis = &$configuration['stores']['redis'];
        $redis['configuration']['serializer'] = $bench['igbinary'] ? \Redis::SERIALIZER_IGBINARY : \Redis::SERIALIZER_PHP;
        // Moodle's own APCu store in front, for the definitions that may be kept on a node, or wrongly for all of them.
        if ($bench['local'] !== 'no') {
            require_once "$CFG->dirroot/cache/stores/apcu/lib.php";
            $local = ['prefix' => $CFG->moodle_fleet_cache['localprefix']];
            $configuration['stores']['local'] = [
                'name' => 'local',
                'plugin' => 'apcu',
                'configuration' => $local,
                'features' => \cachestore_apcu::get_supported_features($local),
                'modes' => \cachestore_apcu::get_supported_modes($local),
                'mappingsonly' => true,
                'default' => false,
            ];
            foreach ($configuration['definitions'] as $id => $definition) {
                if ($definition['mode'] !== \core_cache\store::MODE_APPLICATION) {
                    continue;
                }
                $may = !empty($definition['canuselocalstore']);
                if ($may || $bench['local'] === 'all') {
                    // The highest "sort" is asked first.
                    $configuration['definitionmappings'][] = ['definition' => $id, 'store' => 'local', 'sort' => 1];
                }
                if ($may && $bench['local'] === 'may') {
                    $configuration['definitionmappings'][] = ['definition' => $id, 'store' => 'redis', 'sort' => 0];
                }
            }
        }
        if ($bench['sessions']) {
            foreach ($configuration['modemappings'] as &$mapping) {
                if ($mapping['mode'] === \core_cache\store::MODE_SESSION) {
                    $mapping['store'] = 'redis';
                }
            }
        }
        return $configuration;
    }

    public function load($configuration = false) {
        $loaded = parent::load($configuration);
        // Without the recipe's own store.
        $this->configstores['redis']['class'] = 'cachestore_redis';
        if (isset($this->configstores['local'])) {
            $this->configstores['local']['class'] = moodle_fleet_bench_cache_local::class;
        }
        return $loaded;
    }
}

global $CFG;
require_once "$CFG->dirroot/cache/stores/apcu/lib.php";

// Moodle's APCu store takes no locks, which it needs in front of a store that does: Redis locks for it.
class moodle_fleet_bench_cache_local extends \cachestore_apcu implements \core_cache\lockable_cache_interface {
    public function acquire_lock($key, $ownerid) {
        return true;
    }

    public function check_lock_state($key, $ownerid) {
        return null;
    }

    public function release_lock($key, $ownerid) {
        return true;
    }
}
