<?php
// As Moodle: makes the key of this plugin unless there is one.
defined('MOODLE_INTERNAL') || die();

function mod_lti_verify_private_key(): string {
    if (get_config('mod_lti', 'privatekey') === false) {
        set_config('kid', bin2hex(random_bytes(10)), 'mod_lti');
        set_config('privatekey', bin2hex(random_bytes(32)), 'mod_lti');
    }
    return '';
}
