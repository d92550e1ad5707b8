<?php
// As Moodle: makes the key of this plugin unless there is one.
defined('MOODLE_INTERNAL') || die();

function enrol_lti_verify_private_key(): string {
    if (get_config('enrol_lti', 'lti_13_privatekey') === false) {
        set_config('lti_13_kid', bin2hex(random_bytes(10)), 'enrol_lti');
        set_config('lti_13_privatekey', bin2hex(random_bytes(32)), 'enrol_lti');
    }
    return '';
}
