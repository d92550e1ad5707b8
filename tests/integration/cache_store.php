<?php
// Runs the store of roles/tenants/files/cache_store.php on a node, beside small stand-ins for the classes of Moodle it
// builds on. Reads one JSON object a line, {"do": …}, and answers with one.
namespace core_cache {
    class definition {
        public function __construct(private string $hash) {
        }

        public function get_id(): string {
            return $this->hash === 'strings' ? 'core/string' : 'test/definition';
        }

        public function generate_definition_hash(): string {
            return $this->hash;
        }

        public function get_ttl(): int {
            return 0;
        }
    }
}

namespace {
    const MOODLE_INTERNAL = true;

    class cachestore_redis {
        const COMPRESSOR_NONE = 0;
        public static int $asked = 0;
        public \Redis $redis;
        protected string $hash;
        protected $definition;
        protected int $compressor = 0;

        public function __construct($name, array $configuration) {
            $this->redis = new \Redis();
            $this->redis->connect($configuration['host'], $configuration['port']);
            $this->redis->auth($configuration['auth']);
            $this->redis->setOption(\Redis::OPT_SERIALIZER, \Redis::SERIALIZER_IGBINARY);
            $this->redis->setOption(\Redis::OPT_PREFIX, $configuration['prefix']);
        }

        public function initialise(\core_cache\definition $definition) {
            $this->definition = $definition;
            $this->hash = $definition->generate_definition_hash();
            return true;
        }

        public function get($key) {
            self::$asked++;
            return $this->redis->hGet($this->hash, $key);
        }

        public function get_many($keys) {
            self::$asked++;
            return $this->redis->hMGet($this->hash, $keys);
        }

        public function delete($key) {
            return (bool) $this->redis->hDel($this->hash, $key);
        }

        public function delete_many(array $keys) {
            return $this->redis->hDel($this->hash, ...$keys);
        }

        public function purge() {
            return $this->redis->del($this->hash) !== false;
        }

        public function acquire_lock($key, $ownerid) {
            return true;
        }
    }

    require '/usr/lib/moodle-fleet/cache_store.php';

    $CFG = (object) ['moodle_fleet_strings' => sys_get_temp_dir() . '/test-strings-' . getmypid()];
    mkdir($CFG->moodle_fleet_strings);

    $store = null;
    while (($line = fgets(STDIN)) !== false) {
        $job = json_decode($line, true);
        cachestore_redis::$asked = 0;
        $value = null;
        switch ($job['do']) {
            case 'open':
                $store = new moodle_fleet_cache_store('redis', $job['configuration'] + ['localprefix' => 'test:', 'localttl' => 600]);
                $store->initialise(new \core_cache\definition($job['definition']));
                break;
            case 'request':
                // What PHP-FPM forgets between two requests.
                foreach (['generations' => [], 'read' => 0.0, 'insession' => false, 'missed' => []] as $name => $fresh) {
                    (new ReflectionProperty(moodle_fleet_cache_store::class, $name))->setValue(null, $fresh);
                }
                break;
            case 'release':
                // What the release brings, from now on.
                file_put_contents("$CFG->moodle_fleet_strings/$job[name].php", '<?php return ' . var_export($job['value'], true) . ';');
                break;
            case 'raw':
                $value = $store->redis->{$job['call']}(...$job['with']);
                break;
            default:
                $value = $store->{$job['do']}(...$job['with']);
        }
        echo json_encode(['value' => $value, 'asked' => cachestore_redis::$asked]), "\n";
    }
    array_map(unlink(...), glob("$CFG->moodle_fleet_strings/*"));
    rmdir($CFG->moodle_fleet_strings);
}
