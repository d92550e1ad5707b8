<?php
// Page templates, loaded by config.php. Written by Ansible; changes made here are lost.
//
// Moodle reads the source of each template in every page, to find the code that Mustache made of it, and each site keeps that
// code for itself: on a fresh node it is made anew for each tenant, and many tenants fill OPcache with copies. The release
// brings both, made with it. What a release does not have is handled as Moodle does.
namespace core\output {
    class mustache_filesystem_loader extends \Mustache_Loader_FilesystemLoader {
        private static ?array $sources = null;

        public function __construct() {
        }

        public function load($name) {
            global $CFG;
            $source = parent::load($name);
            return empty($CFG->debugtemplateinfo) ? $source : "<!-- template(PHP): $name -->$source<!-- /template(PHP): $name -->";
        }

        protected function loadFile($name) {
            global $CFG;
            self::$sources ??= require "$CFG->moodle_fleet_output/sources.php";
            $file = $this->getFileName($name);
            $ours = str_starts_with($file, "$CFG->dirroot/");
            return ($ours ? self::$sources[substr($file, strlen($CFG->dirroot) + 1)] ?? null : null) ?? parent::loadFile($name);
        }

        protected function getFileName($name) {
            return mustache_template_finder::get_template_filepath($name);
        }

        protected function shouldCheckPath() {
            return true;
        }
    }
}

namespace {
    class Mustache_Cache_FilesystemCache extends Mustache_Cache_AbstractCache {
        private $folder;
        private $mode;

        public function __construct($baseDir, $fileMode = null) {
            $this->folder = $baseDir;
            $this->mode = $fileMode;
        }

        public function load($key) {
            global $CFG;
            foreach ([$CFG->moodle_fleet_output, $this->folder] as $folder) {
                if (is_file("$folder/$key.php")) {
                    require_once "$folder/$key.php";
                    return true;
                }
            }
            return false;
        }

        public function cache($key, $value) {
            is_dir($this->folder) || @mkdir($this->folder, 0777, true);
            $fresh = tempnam($this->folder, $key);
            if ($fresh === false || file_put_contents($fresh, $value) === false || !rename($fresh, "$this->folder/$key.php")) {
                throw new Mustache_Exception_RuntimeException("Failed to write cache file \"$this->folder/$key.php\".");
            }
            chmod("$this->folder/$key.php", $this->mode ?? 0666 & ~umask());
            $this->load($key);
        }
    }
}
