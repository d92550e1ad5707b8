<?php
// A plugin with nothing but a table, so that tests have releases that differ: whoever copies it counts the version up.
defined('MOODLE_INTERNAL') || die();

$plugin->component = 'local_nextrelease';
$plugin->version = 2026010100;
$plugin->requires = 2022112800;
