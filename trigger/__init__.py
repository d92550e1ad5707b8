# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The command ``moodle-fleet``: one check at a time, and what the ledger knows. No rule of scaling lives here."""
