<?php
// What the recipe's session handler needs of Moodle's: sessions in Redis, one request at a time.
namespace core\session;

class exception extends \Exception {
}

class redis implements \SessionHandlerInterface, \SessionUpdateTimestampHandlerInterface {
    private const LIFETIME = 7200;
    protected $connection;
    protected array $sslopts;
    protected array|string $auth;
    protected string $prefix;
    protected int $serializer = \Redis::SERIALIZER_IGBINARY;
    protected int $connectiontimeout = 3;
    protected int $maxretries = 3;
    protected int $lockexpire;
    protected int $acquiretimeout;
    protected int $lockretry;
    protected array $locks = [];
    protected $lasthash = null;

    public function __construct() {
        global $CFG;
        $this->sslopts = $CFG->session_redis_encrypt;
        $this->auth = $CFG->session_redis_auth;
        $this->prefix = $CFG->session_redis_prefix;
        $this->lockexpire = $CFG->session_redis_lock_expire;
        $this->acquiretimeout = $CFG->session_redis_acquire_lock_timeout;
        $this->lockretry = $CFG->session_redis_acquire_lock_retry;
    }

    public function validateId(string $id): bool {
        return (bool) $this->connection->exists($id);
    }

    public function open(string $path, string $name): bool {
        return true;
    }

    public function read(string $id): string|false {
        $this->lock_session($id);
        return (string) $this->connection->get($id);
    }

    public function write(string $id, string $data): bool {
        return $this->connection->set($id, $data, ['ex' => self::LIFETIME]);
    }

    public function updateTimestamp(string $id, string $data): bool {
        return $this->write($id, $data);
    }

    public function close(): bool {
        array_map(fn(string $id) => $this->connection->unlink("$id.lock"), array_keys($this->locks));
        $this->locks = [];
        return true;
    }

    public function destroy(string $id): bool {
        return (bool) $this->connection->unlink($id);
    }

    public function gc(int $lifetime): int {
        return 0;
    }

    // The recipe's handler comes here once it has waited for long enough.
    protected function lock_session($id) {
        throw new exception('sessioncannotobtainlock: ' . $this->connection->get("$id.lock"));
    }
}
