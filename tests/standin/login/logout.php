<?php
require __DIR__ . '/../config.php';
require_login();
if (hash_equals(sesskey(), $_GET['sesskey'] ?? '')) {
    $_SESSION = [];
    session_destroy();
}
redirect('/');
