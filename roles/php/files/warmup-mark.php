<?php
// Loaded by warmup.php, to recognise the file cache of this build of PHP.
