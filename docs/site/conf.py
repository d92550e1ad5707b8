# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Sphinx' settings. Nothing is fetched, neither when the site is built nor when it is read."""

project = "Moodle Fleet"
author = copyright = "Moodle Fleet contributors"
extensions = ["myst_parser"]
myst_heading_anchors = 4
myst_enable_extensions = ["attrs_inline"]
# Examples that were shortened by "…" are no YAML, and shown all the same.
suppress_warnings = ["misc.highlighting_failure"]
exclude_patterns = [".doctrees"]
html_theme = "furo"
html_title = project
html_static_path = ["static"]
html_css_files = ["style.css"]
html_copy_source = False
html_show_sphinx = False
pygments_style = "friendly"
