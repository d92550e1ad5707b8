<?php
// A stand-in for Moodle: the same layout and command line, a few pages, no learning.
defined('MOODLE_INTERNAL') || die();

$version  = 2026010100.00;
$release  = '4.5.99standin (Build: 20260101)';
$branch   = '405';
$maturity = MATURITY_STABLE;
