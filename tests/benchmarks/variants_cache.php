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
        if ($bench['local'] === 'no') {
            unset($configuration['stores']['local']);
            $configuration['definitionmappings'] = [];
        } else if ($bench['local'] === 'all') {
            // What must not be done: caches that nobody else sees.
            $configuration['definitionmappings'] = [];
            foreach ($configuration['definitions'] as $id => $definition) {
                if ($definition['mode'] === \core_cache\store::MODE_APPLICATION) {
                    $configuration['definitionmappings'][] = ['definition' => $id, 'store' => 'local', 'sort' => 1];
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
}
