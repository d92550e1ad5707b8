<?php
// The store behind Moodle's application caches, loaded by cache.php. Written by Ansible; changes made here are lost.

defined('MOODLE_INTERNAL') || die();

// Moodle's Redis store with copies in the node's own memory (APCu), so that a page asks Redis a few times and not for
// each value.
//
// In Redis each definition has a generation, a random word that changes whenever a value of it may have changed. All
// generations are read at once, and a copy counts only while its definition has the generation that was read before
// the value was. So what one node changes is seen by the others at their next request. The generations are read again
// after a second, after waiting for the session's lock and after locking a cache: what happened meanwhile must be seen.
//
// Redis may drop a definition or all generations to make room: a word is never used twice, so no copy comes back to life.
class moodle_fleet_cache_store extends \cachestore_redis {
    // The Redis hash with all generations, below the tenant's prefix.
    private const GENERATIONS = 'generations';
    private const MAX_AGE = 1.0;
    // Who waited for a session's lock waited for longer than this.
    private const SESSION_WAIT = 0.05;

    private static array $generations = [];
    private static float $read = 0.0;
    private static bool $insession = false;
    // Keys that Redis did not have in this request: to set one of them fills a gap and changes nothing.
    private static array $missed = [];

    private string $prefix = '';
    private int $ttl = 0;
    // Whether copies of this definition may be kept here.
    private bool $local = false;

    public function __construct($name, array $configuration = []) {
        parent::__construct($name, $configuration);
        $this->prefix = $configuration['localprefix'] ?? '';
        $this->ttl = (int) ($configuration['localttl'] ?? 0);
    }

    public function initialise(\core_cache\definition $definition) {
        $initialised = parent::initialise($definition);
        $this->local = $this->prefix !== '' && function_exists('apcu_enabled') && apcu_enabled();
        return $initialised;
    }

    public function get($key) {
        $generation = $this->generation();
        if ($generation !== null) {
            $copy = apcu_fetch($this->local_key($key));
            if ($copy !== false && $copy[0] === $generation && ($value = $this->value_of($key, $copy)) !== false) {
                return $value;
            }
        }
        $value = parent::get($key);
        $this->keep($key, $value, $generation);
        return $value;
    }

    public function get_many($keys) {
        $generation = $this->generation();
        $found = [];
        if ($generation !== null && $keys) {
            $names = array_combine(array_map($this->local_key(...), $keys), $keys);
            foreach (apcu_fetch(array_keys($names)) ?: [] as $name => $copy) {
                if ($copy[0] === $generation && ($value = $this->value_of($names[$name], $copy)) !== false) {
                    $found[$names[$name]] = $value;
                }
            }
        }
        $rest = array_values(array_filter($keys, static fn($key) => !array_key_exists($key, $found)));
        if ($rest) {
            foreach (parent::get_many($rest) as $key => $value) {
                $this->keep($key, $value, $generation);
                $found[$key] = $value;
            }
        }
        // In the order asked for, as the caller expects it.
        $values = [];
        foreach ($keys as $key) {
            $values[$key] = $found[$key] ?? false;
        }
        return $values;
    }

    public function set($key, $data) {
        return $this->set_many([['key' => $key, 'value' => $data]]) === 1;
    }

    public function set_many(array $keyvaluearray) {
        $fills = true;
        foreach ($keyvaluearray as $pair) {
            $fills = $fills && isset(self::$missed[$this->hash][$pair['key']]);
            unset(self::$missed[$this->hash][$pair['key']]);
        }
        if ($this->definition->get_ttl()) {
            // Moodle keeps their age in the value, and the store a list of them besides.
            $count = parent::set_many($keyvaluearray);
            $this->changed();
            return $count;
        }
        $pipeline = $this->redis->pipeline();
        foreach ($keyvaluearray as $pair) {
            $pipeline->hSet($this->hash, $pair['key'], $pair['value']);
        }
        $answers = $pipeline->exec();
        if (!is_array($answers) || in_array(false, $answers, true)) {
            $this->changed();
            return 0;
        }
        // 1: it was not there, 0: it was overwritten.
        if (!$fills || in_array(0, $answers, true)) {
            $this->changed();
        }
        return count($keyvaluearray);
    }

    public function delete($key) {
        $done = parent::delete($key);
        $this->changed();
        return $done;
    }

    public function delete_many(array $keys) {
        $count = parent::delete_many($keys);
        if ($keys) {
            $this->changed();
        }
        return $count;
    }

    public function purge() {
        $done = parent::purge();
        $this->changed();
        return $done;
    }

    public function acquire_lock($key, $ownerid) {
        $locked = parent::acquire_lock($key, $ownerid);
        self::$read = 0.0;
        return $locked;
    }

    private function local_key($key): string {
        return "$this->prefix$this->hash:$key";
    }

    // Keep a copy of what Redis answered, or remember that it had nothing.
    private function keep($key, $value, ?string $generation): void {
        if ($value === false) {
            self::$missed[$this->hash][$key] = true;
        } else if ($generation !== null) {
            $file = $this->of_release($key);
            $same = $file !== '' && is_file($file) && $value === require $file;
            apcu_store($this->local_key($key), $same ? [$generation] : [$generation, $value], $this->ttl);
        }
    }

    // A copy without a value stands for what the release brings; false where that is gone.
    private function value_of($key, array $copy): mixed {
        if (count($copy) > 1) {
            return $copy[1];
        }
        $file = $this->of_release($key);
        return is_file($file) ? require $file : false;
    }

    // Where the release brings this value, or nothing. To copy the strings of a page out of APCu took a tenth of a login page. As compiled code
    // PHP has them in its memory, once for all sites that did not change them.
    private function of_release($key): string {
        global $CFG;
        return $this->definition->get_id() === 'core/string' && preg_match('~^(en_\w+)_\d+-~', $key, $match)
            ? "$CFG->moodle_fleet_strings/$match[1].php" : '';
    }

    // This definition's generation, or null where no copy may be used or kept.
    private function generation(): ?string {
        if (!$this->local) {
            return null;
        }
        $insession = session_status() === PHP_SESSION_ACTIVE;
        $age = microtime(true) - self::$read;
        if ($age > ($insession && !self::$insession ? self::SESSION_WAIT : self::MAX_AGE)) {
            self::$read = microtime(true);
            self::$generations = $this->redis->hGetAll(self::GENERATIONS) ?: [];
        }
        self::$insession = $insession;
        if (!isset(self::$generations[$this->hash])) {
            // New, or dropped by Redis. Whoever comes first names it; copies are kept from the next reading on.
            $this->redis->hSetNx(self::GENERATIONS, $this->hash, self::word());
            self::$generations[$this->hash] = '';
        }
        return self::$generations[$this->hash] ?: null;
    }

    // Called after a change, never before: a reader in between keeps the new value under the old word, which does no harm.
    private function changed(): void {
        $word = self::word();
        $this->redis->hSet(self::GENERATIONS, $this->hash, $word);
        // Copies made from now on are older than what another node may change before the next reading.
        self::$generations[$this->hash] = $word;
    }

    private static function word(): string {
        return random_bytes(9);
    }
}
