<?php
// Moodle keeps cli_error() and its like here; the stand-in has them in standin.php.
defined('MOODLE_INTERNAL') || die();
