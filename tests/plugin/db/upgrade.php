<?php
// Adds a field for each version, and fails half way in a site whose setting 'broken' says so.
defined('MOODLE_INTERNAL') || die();

function xmldb_local_nextrelease_upgrade(int $oldversion): bool {
    global $DB;
    $manager = $DB->get_manager();
    $table = new xmldb_table('local_nextrelease');
    $field = new xmldb_field("step$oldversion", XMLDB_TYPE_INTEGER, '10', null, null, null, null, 'version');
    if (!$manager->field_exists($table, $field)) {
        $manager->add_field($table, $field);
    }
    if (get_config('local_nextrelease', 'broken')) {
        throw new moodle_exception('This site cannot be upgraded');
    }
    $DB->insert_record('local_nextrelease', ['version' => $oldversion]);
    return true;
}
