<?php
// Makes a copied site one of its own, and sets settings. Written by Ansible; changes made here are lost.
//
// Runs once for a tenant, whatever there is to do, and uses Moodle's own functions. What to do comes as JSON on standard
// input, so that a password in it shows up neither in the list of processes nor in a log:
//   move      of a site that keeps its identity and comes from elsewhere: from and to, its addresses, and paths (old => new)
//   own       of a site that was copied from another: what no two sites may share is made anew, see own() below
//   settings  values by name or component/name; null unsets

if (PHP_SAPI !== 'cli') {
    exit(1);
}
define('CLI_SCRIPT', true);
$moodlefleetcall = json_decode(stream_get_contents(STDIN), true);
if (!is_array($moodlefleetcall) || !isset($moodlefleetcall['root'])) {
    fwrite(STDERR, "moodle-fleet: standard input is not a JSON object with 'root'.\n");
    exit(64);
}
require $moodlefleetcall['root'] . '/config.php';

(static function (array $call): void {
    global $CFG, $DB;
    require_once "$CFG->libdir/clilib.php";
    if (!empty($call['move'])) {
        moodle_fleet_move($call['move']['from'], $call['move']['to'], (array) $call['move']['paths']);
    }
    if (!empty($call['own'])) {
        moodle_fleet_own($call['own']);
    }
    foreach ($call['settings'] ?? [] as $key => $value) {
        [$component, $name] = str_contains($key, '/') ? explode('/', $key, 2) : ['', $key];
        $forced = $component === ''
            ? array_key_exists($name, $CFG->config_php_settings ?? [])
            : array_key_exists($name, $CFG->forced_plugin_settings[$component] ?? []);
        if ($forced) {
            cli_error("$key is set in config.php for all tenants: take it out of this tenant's settings.", 4);
        }
        // As admin/cli/cfg.php does, which would be a process for each.
        $old = get_config($component, $name);
        $old = $old === false ? null : $old;
        if ($old !== $value) {
            set_config($name, $value, $component);
            add_to_config_log($name, $old, $value, $component);
        }
    }
})($moodlefleetcall);

/** Addresses and paths outside of content, which is for Moodle's own tool. The longest that fits is taken. */
function moodle_fleet_move(string $from, string $to, array $replacements): void {
    global $DB;
    // With the slashes: an address of mail at the old host stays.
    $replacements += [$from => $to, preg_replace('~^https?:~', '', $from) => preg_replace('~^https?:~', '', $to)];
    foreach (['config', 'config_plugins'] as $table) {
        foreach ($DB->get_records($table) as $row) {
            $value = strtr((string) $row->value, $replacements);
            if ($value !== (string) $row->value) {
                set_config($row->name, $value, $row->plugin ?? null);
            }
        }
    }
    foreach (['adminpresets' => 'site', 'mnet_host' => 'wwwroot'] as $table => $column) {
        if ($DB->get_manager()->table_exists($table)) {
            $DB->set_field($table, $column, $to, [$column => $from]);
        }
    }
}

/**
 * Make anew what a site must not share with the site it was copied from.
 *
 * $own: from and to, the sites' addresses; paths (old => new, in settings); and for a site that nobody has used yet also
 * admin_user, admin_password, admin_email, fullname, shortname.
 */
function moodle_fleet_own(array $own): void {
    global $CFG, $DB;

    $host = parse_url($own['to'], PHP_URL_HOST);
    $replacements = [parse_url($own['from'], PHP_URL_HOST) => $host] + $own['paths'];
    if (isset($own['admin_email'])) {
        $replacements[$own['from_email']] = $own['admin_email'];
    }
    moodle_fleet_move($own['from'], $own['to'], $replacements);

    // Identity and salts.
    set_config('siteidentifier', random_string(32) . $host);
    set_config('badges_badgesalt', 'badges' . random_string(40));
    set_config('calendar_exportsalt', random_string(60));

    // Keys, as the plugins make them.
    foreach (['mod_lti' => ['mod/lti', 'kid', 'privatekey'],
              'enrol_lti' => ['enrol/lti', 'lti_13_kid', 'lti_13_privatekey']] as $plugin => [$folder, $kid, $key]) {
        if (get_config($plugin, $key) === false) {
            continue;
        }
        unset_config($kid, $plugin);
        unset_config($key, $plugin);
        require_once "$CFG->dirroot/$folder/upgradelib.php";
        $problem = "{$plugin}_verify_private_key"();
        if ($problem) {
            cli_error("The key of $plugin cannot be made: $problem");
        }
    }

    // Each web node builds its own themes; those of a jobs node would be used by nobody and cost ten seconds a copy.
    if ($DB->get_manager()->table_exists('task_adhoc')) {
        $DB->delete_records('task_adhoc', ['classname' => '\\core\\task\\build_installed_themes_task']);
    }

    // What links the copy to accounts and services of the original.
    foreach (['registration_hubs', 'external_tokens', 'user_private_key', 'sessions'] as $table) {
        if ($DB->get_manager()->table_exists($table)) {
            $DB->delete_records($table);
        }
    }

    if (!isset($own['admin_user'])) {
        return;
    }

    // The site and its administrator. What was logged of the installation holds the old values.
    foreach (['config_log', 'upgrade_log'] as $table) {
        if ($DB->get_manager()->table_exists($table)) {
            $DB->delete_records($table);
        }
    }
    $now = time();
    $site = $DB->get_record('course', ['format' => 'site'], '*', MUST_EXIST);
    $DB->update_record('course', ['id' => $site->id, 'fullname' => $own['fullname'], 'shortname' => $own['shortname'],
        'timemodified' => $now]);
    $DB->update_record('user', ['id' => (int) get_config('core', 'siteadmins'), 'username' => $own['admin_user'],
        'email' => $own['admin_email'], 'password' => hash_internal_user_password($own['admin_password'])]);
    $DB->set_field('user', 'password', hash_internal_user_password('guest'), ['username' => 'guest']);
    set_config('supportemail', $own['admin_email']);

    // A task's minute is drawn by lot when a site is installed: a copy draws its own, or all would start at once.
    if (class_exists('\core\task\manager')) {
        foreach ($DB->get_fieldset_sql('SELECT DISTINCT component FROM {task_scheduled}') as $component) {
            \core\task\manager::reset_scheduled_tasks_for_component($component);
        }
        $DB->execute('UPDATE {task_adhoc} SET timecreated = ?, nextruntime = ?', [$now, $now]);
    }
}
