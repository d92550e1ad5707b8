<?php
// The few of Moodle's functions, and of its database object, that the fleet's own site.php calls.

defined('MOODLE_INTERNAL') || die();
define('MUST_EXIST', 2);

function set_config(string $name, mixed $value, ?string $plugin = null): bool {
    global $CFG;
    set_config_value($name, $value === null ? null : (string) $value, $plugin ?: 'core');
    if (!$plugin) {
        $CFG->$name = $value;
    }
    return true;
}

function unset_config(string $name, ?string $plugin = null): bool {
    return set_config($name, null, $plugin);
}

function get_config(?string $plugin, string $name): string|false {
    return get_config_value($name, $plugin ?: 'core') ?? false;
}

function add_to_config_log(string $name, ?string $old, ?string $value, ?string $plugin): void {
    rows('INSERT INTO mdl_config_log (name, plugin, value) VALUES (?, ?, ?)', [$name, $plugin ?: null, $value]);
}

function purge_all_caches(): void {
    set_config_value('localcachedirpurged', (string) time());
}

function random_string(int $length = 15): string {
    $pool = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789';
    return implode('', array_map(static fn() => $pool[random_int(0, 61)], range(1, $length)));
}

function hash_internal_user_password(string $password): string {
    return password_hash($password, PASSWORD_BCRYPT, ['cost' => 6]);
}

class standin_database {
    public function get_manager(): self {
        return $this;
    }

    public function table_exists(string $table): bool {
        return (bool) rows('SELECT 1 FROM information_schema.TABLES WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = ?', ["mdl_$table"]);
    }

    public function get_records(string $table): array {
        return array_map(static fn($row) => (object) $row, rows("SELECT * FROM mdl_$table"));
    }

    public function get_record(string $table, array $conditions): object {
        [$where, $values] = $this->where($conditions);
        return (object) (rows("SELECT * FROM mdl_$table WHERE $where", $values)[0] ?? throw new RuntimeException("no $table"));
    }

    public function set_field(string $table, string $field, mixed $value, array $conditions): void {
        [$where, $values] = $this->where($conditions);
        rows("UPDATE mdl_$table SET $field = ? WHERE $where", [$value, ...$values]);
    }

    public function update_record(string $table, array $record): void {
        foreach (array_diff_key($record, ['id' => 0]) as $field => $value) {
            $this->set_field($table, $field, $value, ['id' => $record['id']]);
        }
    }

    public function delete_records(string $table): void {
        rows("DELETE FROM mdl_$table");
    }

    private function where(array $conditions): array {
        return [implode(' AND ', array_map(static fn($field) => "$field = ?", array_keys($conditions))), array_values($conditions)];
    }
}
