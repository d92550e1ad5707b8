<?php
// The store in a node's own memory, loaded by cache.php. Written by Ansible; changes made here are lost.

defined('MOODLE_INTERNAL') || die();

// Moodle's APCu store with two differences: entries expire, since old keys are never asked for again;
// and it needs no locks of its own, since Redis behind it has locked the key for the whole fleet.
class moodle_fleet_cache_local extends \cachestore_apcu implements \core_cache\lockable_cache_interface {
    public function set($key, $data) {
        global $CFG;
        return apcu_store($this->prepare_key($key), $data, $CFG->moodle_fleet_cache['localttl']);
    }

    public function set_many(array $keyvaluearray) {
        $stored = 0;
        foreach ($keyvaluearray as $pair) {
            $stored += (int) $this->set($pair['key'], $pair['value']);
        }
        return $stored;
    }

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
