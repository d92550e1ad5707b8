<?php
// Sessions in Redis, loaded by config.php. Written by Ansible; changes made here are lost.

defined('MOODLE_INTERNAL') || die();

// Moodle's own handler with three changes. It asks Redis for its version twice in every request; the recipe knows the version.
// It looks for, locks and deletes sessions that PHP has just made up and nobody can have stored. And the lock of a session
// outlives its holder until it expires: here the lock says which connection to Redis took it, and who waits takes it over
// once Redis has seen that connection end, because a worker crashed or a whole node died.
class moodle_fleet_session extends \core\session\redis implements \SessionIdInterface {
    // The number Redis gave this connection.
    private int $client = 0;
    // Sessions that this request made up and did not store yet.
    private array $fresh = [];

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
                $this->connection->setOption(\Redis::OPT_SERIALIZER, $this->serializer);
                $this->connection->setOption(\Redis::OPT_PREFIX, $this->prefix);
                [$known, $client] = $this->connection->pipeline()->auth($this->auth)->rawCommand('CLIENT', 'ID')->exec();
                if (!$known) {
                    throw new \RedisException($this->connection->getLastError() ?? 'Redis refused the password');
                }
                $this->client = (int) $client;
                return true;
            } catch (\RedisException $exception) {
                if ($try >= $this->maxretries) {
                    throw $exception;
                }
                usleep(random_int(100_000, 500_000));
            }
        }
    }

    public function create_sid(): string {
        $id = session_create_id();
        $this->fresh[$id] = true;
        return $id;
    }

    public function read(string $id): string|false {
        if (isset($this->fresh[$id])) {
            $this->lasthash = sha1('');
            return '';
        }
        return parent::read($id);
    }

    public function write(string $id, string $data): bool {
        unset($this->fresh[$id]);
        return parent::write($id, $data);
    }

    public function destroy(string $id): bool {
        if ($id === '' || isset($this->fresh[$id])) {
            $this->lasthash = null;
            return true;
        }
        return parent::destroy($id);
    }

    public function get_session_by_sid(string $sid): \stdClass {
        return isset($this->fresh[$sid]) ? new \stdClass() : parent::get_session_by_sid($sid);
    }

    public function add_session(int $userid): \stdClass {
        unset($this->fresh[session_id()]);
        // Four writes, sent at once.
        $this->connection->pipeline();
        try {
            return parent::add_session($userid);
        } finally {
            $this->connection->exec();
        }
    }

    protected function lock_session($id) {
        $start = time();
        if ($start < ($this->locks[$id] ?? 0)) {
            return true;
        }
        $key = "$id.lock";
        $me = sprintf('[pid %d client %d] %s:%s', getmypid(), $this->client, gethostname(), $_SERVER['REQUEST_URI'] ?? 'unknown uri');
        while (!$this->connection->set($key, $me, ['nx', 'ex' => $this->lockexpire]) && !$this->take_over($key, $me)) {
            $waited = time() - $start;
            if ($waited > $this->acquiretimeout) {
                // Moodle's own words to the learner and to the log.
                $this->acquiretimeout = 0;
                return parent::lock_session($id);
            }
            // As patient as Moodle, which asks less often after five seconds.
            $pause = $waited < 5 ? $this->lockretry : 1000;
            usleep(1000 * random_int($pause, (int) (1.1 * $pause)));
        }
        $this->locks[$id] = time() + $this->lockexpire;
        return true;
    }

    // Take the lock of a holder whose connection is gone. Whoever changes the lock meanwhile wins.
    private function take_over(string $key, string $me): bool {
        $this->connection->watch($key);
        $holder = $this->connection->get($key);
        if (!is_string($holder) || !preg_match('/^\[pid \d+ client ([1-9]\d*)\]/', $holder, $match)
                || $this->connection->rawCommand('CLIENT', 'LIST', 'ID', $match[1]) !== '') {
            $this->connection->unwatch();
            return false;
        }
        $done = $this->connection->multi()->set($key, $me, ['ex' => $this->lockexpire])->exec();
        if (empty($done[0])) {
            return false;
        }
        error_log("The session lock of a request that ended without releasing it was taken over: $holder");
        return true;
    }
}
