# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the modules about tenants have in common."""

from __future__ import annotations


class ModuleDocFragment:
    """Options of the modules about tenants: what tenants there are, where their sites are, where backups are."""

    DOCUMENTATION = r"""
options:
  tenants:
    description:
      - The tenants, as in C(moodle_tenants). Each has the keys C(name), C(hosts), C(title) and C(admin) (with C(user)
        and C(email)), and may have C(shortname), C(lang), C(state), C(settings), C(generation), C(database), the name of one
        of O(servers), C(own_user), whether PHP runs it as a Unix user of its own, and C(uid), the number of that user.
    type: list
    elements: dict
    required: true
  database:
    description: The database server, MariaDB.
    type: dict
    required: true
    suboptions:
      host:
        description: Its host name or address.
        type: str
        required: true
      port:
        description: Its port.
        type: int
        default: 3306
      user:
        description: A user that may make databases and users.
        type: str
        required: true
      password:
        description: Its password.
        type: str
        required: true
      user_host:
        description: Hosts from which the tenants' users may connect.
        type: str
        default: '%'
      tls:
        description: Whether it is reached by TLS. Its certificate has to be good for its name and trusted by the node.
        type: bool
        default: false
  servers:
    description: Further database servers by name. Each has the keys of O(database); without C(tls) it is as with O(database).
    type: dict
    default: {}
requirements:
  - PyMySQL
"""

    PLACES = r"""
options:
  code:
    description: Folder of the release, or the link to it.
    type: path
    default: /srv/moodle/current
  shared_root:
    description: Where the shared file system is mounted.
    type: path
    default: /srv/moodledata
  owner:
    description: The user that PHP runs as, and that owns the folders, of tenants without a Unix user of their own.
    type: str
    default: www-data
"""

    SITE = r"""
options:
  secret:
    description: The fleet's secret, at least 32 characters, from which all passwords are derived.
    type: str
    required: true
  cli:
    description: The script that runs Moodle's scripts, as installed by the role P(elearning.moodle_fleet.tenants#role).
    type: path
    default: /usr/lib/moodle-fleet/cli.php
  php:
    description:
      - PHP's command line program and its options. The default compiles Moodle's code to a folder of its own, which
        halves the time an installation takes.
    type: list
    elements: str
    default:
      - php
      - -d
      - max_input_vars=5000
      - -d
      - opcache.enable_cli=1
      - -d
      - opcache.file_cache=/var/cache/moodle-fleet/opcache-cli
      - -d
      - opcache.file_cache_only=1
  public_port:
    description: The port visitors use; it is part of each site's address unless it is V(443).
    type: int
    default: 443
"""

    CACHE = r"""
options:
  cache:
    description: The Redis server, or the two of them, for sessions and for Moodle's caches. Users are made on both.
    type: dict
    required: true
    suboptions:
      host:
        description: Its host name or address.
        type: str
        required: true
      port:
        description: Its port.
        type: int
        default: 6379
      muc_host:
        description: Host name or address of the server for Moodle's caches; O(cache.host) without it.
        type: str
      muc_port:
        description: Port of the server for Moodle's caches; O(cache.port) without it.
        type: int
      user:
        description: A user that may make users.
        type: str
        default: default
      password:
        description: Its password.
        type: str
        default: ''
      tls:
        description: Whether it is reached by TLS. Its certificate has to be good for its name and trusted by the node.
        type: bool
        default: false
      shared_user:
        description:
          - Whether all tenants use the default user with O(cache.password), because the server lets nobody make users, as
            ElastiCache does. It is asked whether it answers, and keys of tenants that are made anew or removed are taken away.
        type: bool
        default: false
"""

    BACKUP = r"""
options:
  store:
    description:
      - Where backups are, a folder or what restic knows, such as V(s3:https://s3.example.org/bucket/folder). Each tenant has a
        repository of its own there.
    type: str
    default: ''
  environment:
    description: Environment variables that the store needs, such as V(AWS_ACCESS_KEY_ID).
    type: dict
    default: {}
requirements:
  - restic 0.14
  - the programs C(mariadb) and C(mariadb-dump)
"""
