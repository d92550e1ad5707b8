<?php
require __DIR__ . '/../config.php';
start_session();

$error = '';
if ($_SERVER['REQUEST_METHOD'] === 'POST') {
    $token = $_SESSION['logintoken'] ?? '';
    $user = rows('SELECT id, username, password FROM mdl_user WHERE username = ?', [strtolower(trim($_POST['username'] ?? ''))]);
    if ($token !== '' && hash_equals($token, $_POST['logintoken'] ?? '')
        && $user && password_verify($_POST['password'] ?? '', $user[0]['password'])) {
        session_regenerate_id(true);
        $_SESSION = ['user' => $user[0]['username'], 'userid' => $user[0]['id']];
        sesskey();
        rows('UPDATE mdl_user SET lastlogin = ?, lastaccess = ? WHERE id = ?', [time(), time(), $user[0]['id']]);
        session_write_close();
        redirect('/my/');
    }
    $error = '<p class="error">Invalid login, please try again</p>';
}
$_SESSION['logintoken'] ??= bin2hex(random_bytes(16));
page('Log in', $error . '<form action="/login/index.php" method="post">'
    . "<input type=\"hidden\" name=\"logintoken\" value=\"$_SESSION[logintoken]\">"
    . '<input name="username" autocomplete="username"> <input name="password" type="password"> <button>Log in</button></form>');
