<?php
// Runs PHP for the dispatcher, a fork for each run. Written by Ansible; changes made here are lost.
//
// A fork starts as empty as a process of its own would: nothing of Moodle is loaded before it. What all forks share is
// OPcache's memory, so that no run compiles or loads code that an earlier one had.
//
//   php runner.php SOCKET    takes requests there, a line of JSON each, and answers with lines of JSON:
//   {"id": 7, "script": "/srv/.../cron.php", "args": ["--keep-alive=0"], "env": {"MOODLE_TENANT": "acme"}}
//   {"id": 7, "pid": 1234}                     at once
//   {"id": 7, "code": 0, "cpu": 0.21}          at its end; 128 + the signal's number if one ended it
//   {"id": 7, "signal": 15}                    sends a signal to a run that is under way; 9 reaches the programs it started too
// What a run prints goes to standard output, where the dispatcher sees by the sender's process id whose it is.

$moodlefleetserver = stream_socket_client('unix://' . $argv[1]);
if (!$moodlefleetserver) {
    exit(1);
}
$moodlefleetruns = [];
$moodlefleetopen = true;
while ($moodlefleetopen || $moodlefleetruns) {
    while ($moodlefleetruns && ($moodlefleetpid = pcntl_waitpid(-1, $moodlefleetstatus, WNOHANG, $moodlefleetused)) > 0) {
        fwrite($moodlefleetserver, json_encode([
            'id' => $moodlefleetruns[$moodlefleetpid],
            'code' => pcntl_wifexited($moodlefleetstatus)
                ? pcntl_wexitstatus($moodlefleetstatus) : 128 + pcntl_wtermsig($moodlefleetstatus),
            'cpu' => round($moodlefleetused['ru_utime.tv_sec'] + $moodlefleetused['ru_stime.tv_sec']
                + ($moodlefleetused['ru_utime.tv_usec'] + $moodlefleetused['ru_stime.tv_usec']) / 1e6, 4),
        ]) . "\n");
        unset($moodlefleetruns[$moodlefleetpid]);
    }
    if (!$moodlefleetopen) {
        usleep(50_000);
        continue;
    }
    $moodlefleetread = [$moodlefleetserver];
    $moodlefleetnone = null;
    // Looks after its forks twenty times a second while there are any.
    $moodlefleetready = stream_select(
        $moodlefleetread, $moodlefleetnone, $moodlefleetnone, $moodlefleetruns ? 0 : 3600, $moodlefleetruns ? 50_000 : 0
    );
    if (!$moodlefleetready) {
        continue;
    }
    $moodlefleetline = fgets($moodlefleetserver);
    if ($moodlefleetline === false) {
        // The dispatcher wants no more runs, or is gone.
        $moodlefleetopen = false;
        continue;
    }
    $moodlefleetcall = json_decode($moodlefleetline, true, 8, JSON_THROW_ON_ERROR);
    if (isset($moodlefleetcall['signal'])) {
        $moodlefleetpid = array_search($moodlefleetcall['id'], $moodlefleetruns, true);
        if ($moodlefleetpid !== false) {
            posix_kill($moodlefleetcall['signal'] === SIGKILL ? -$moodlefleetpid : $moodlefleetpid, $moodlefleetcall['signal']);
        }
        continue;
    }
    $moodlefleetpid = pcntl_fork();
    if ($moodlefleetpid === 0) {
        break;
    }
    if ($moodlefleetpid < 0) {
        fwrite($moodlefleetserver, json_encode(['id' => $moodlefleetcall['id'], 'code' => 71, 'cpu' => 0]) . "\n");
        continue;
    }
    $moodlefleetruns[$moodlefleetpid] = $moodlefleetcall['id'];
    fwrite($moodlefleetserver, json_encode(['id' => $moodlefleetcall['id'], 'pid' => $moodlefleetpid]) . "\n");
}

// In the fork: as if the script had been started by itself.
if ($moodlefleetpid !== 0) {
    exit(0);
}
fclose($moodlefleetserver);
posix_setsid();
// When memory runs out a run is to go, not the dispatcher.
@file_put_contents('/proc/self/oom_score_adj', '500');
foreach ($moodlefleetcall['env'] ?? [] as $moodlefleetkey => $moodlefleetvalue) {
    putenv("$moodlefleetkey=$moodlefleetvalue");
}
$argv = array_merge([$moodlefleetcall['script']], $moodlefleetcall['args'] ?? []);
$argc = count($argv);
$_SERVER['argv'] = $argv;
$_SERVER['argc'] = $argc;
$_SERVER['SCRIPT_NAME'] = $_SERVER['SCRIPT_FILENAME'] = $_SERVER['PHP_SELF'] = $_SERVER['PATH_TRANSLATED'] = $argv[0];
$_SERVER['REQUEST_TIME_FLOAT'] = microtime(true);
$_SERVER['REQUEST_TIME'] = (int) $_SERVER['REQUEST_TIME_FLOAT'];
unset(
    $moodlefleetserver, $moodlefleetruns, $moodlefleetpid, $moodlefleetstatus, $moodlefleetused, $moodlefleetread,
    $moodlefleetnone, $moodlefleetready, $moodlefleetline, $moodlefleetcall, $moodlefleetkey, $moodlefleetvalue
);
chdir(dirname($argv[0]));
require $argv[0];
