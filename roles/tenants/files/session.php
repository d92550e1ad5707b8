<?php
// Sessions in Redis, loaded by config.php. Written by Ansible; changes made here are lost.

defined('MOODLE_INTERNAL') || die();

// Moodle's own handler, which asks Redis for its version twice in every request; the recipe knows the version.
class moodle_fleet_session extends \core\session\redis {
    public function init(): bool {
        global $CFG;
        if (!session_set_save_handler($this)) {
            throw new \core\session\exception('redissessionhandlerproblem', 'error');
        }
        for ($try = 1;; $try++) {
            try {
                $this->connection = new \Redis();
                $this->connection->connect(
                    ($this->sslopts ? 'tls://' : '') . $CFG->session_redis_host, $CFG->session_redis_port,
                    $this->connectiontimeout, null, 0, $this->connectiontimeout,
                    $this->sslopts ? ['stream' => $this->sslopts] : []
                );
                $this->connection->auth($this->auth);
                $this->connection->setOption(\Redis::OPT_SERIALIZER, $this->serializer);
                $this->connection->setOption(\Redis::OPT_PREFIX, $this->prefix);
                return true;
            } catch (\RedisException $exception) {
                if ($try >= $this->maxretries) {
                    throw $exception;
                }
                usleep(random_int(100_000, 500_000));
            }
        }
    }
}
