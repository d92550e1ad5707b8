# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A stand-in for AWX: its REST API over real HTTP, with objects that refer to each other, and what AWX documents that it refuses or
ignores. It runs no job: a job walks through its states as it is looked at."""

from __future__ import annotations

import http.server
import itertools
import json
import re
import threading
import urllib.parse
from typing import Any

ADMIN, AUDITOR = "a-token-that-may-all", "a-token-that-may-read"
HIDDEN = "$encrypted$"
ACTIVE = ("pending", "waiting", "running")
PROMPTS = {"inventory": None, "limit": "", "job_type": "run", "scm_branch": "", "credential": None, "variables": None}

# Of each list: the type of what is in it, what must be given, what refers to which list, and fields with their defaults.
KINDS: dict[str, tuple[str, tuple[str, ...], dict[str, str], dict[str, Any]]] = {
    "organizations": ("organization", ("name",), {"default_environment": "execution_environments"}, {"description": "", "max_hosts": 0}),
    "credential_types": ("credential_type", ("name", "kind"), {}, {"description": "", "managed": False, "inputs": {}, "injectors": {}}),
    "credentials": ("credential", ("name", "credential_type"), {"credential_type": "credential_types", "organization": "organizations"},
                    {"description": "", "inputs": {}}),
    "execution_environments": ("execution_environment", ("name", "image"), {"organization": "organizations", "credential": "credentials"},
                               {"description": "", "pull": ""}),
    "projects": ("project", ("name",), {"organization": "organizations", "credential": "credentials",
                                        "default_environment": "execution_environments"},
                 {"description": "", "scm_type": "", "scm_url": "", "scm_branch": "", "scm_clean": False, "scm_revision": "",
                  "scm_update_on_launch": False}),
    "inventories": ("inventory", ("name", "organization"), {"organization": "organizations"},
                    {"description": "", "kind": "", "host_filter": None, "variables": ""}),
    "inventory_sources": ("inventory_source", ("name", "inventory"),
                          {"inventory": "inventories", "source_project": "projects", "credential": "credentials",
                           "execution_environment": "execution_environments"},
                          {"description": "", "source": "", "source_path": "", "overwrite": False, "overwrite_vars": False,
                           "update_on_launch": False, "update_cache_timeout": 0}),
    "notification_templates": ("notification_template", ("name", "organization", "notification_type"), {"organization": "organizations"},
                               {"description": "", "notification_configuration": {}, "messages": None}),
    "job_templates": ("job_template", ("name", "project", "playbook"),
                      {"organization": "organizations", "project": "projects", "inventory": "inventories",
                       "execution_environment": "execution_environments"},
                      {"description": "", "job_type": "run", "extra_vars": "", "allow_simultaneous": False, "survey_enabled": False,
                       **{f"ask_{name}_on_launch": False for name in PROMPTS}}),
    "workflow_job_templates": ("workflow_job_template", ("name",), {"organization": "organizations", "inventory": "inventories"},
                               {"description": "", "extra_vars": "", "allow_simultaneous": False, "survey_enabled": False,
                                "ask_variables_on_launch": False}),
    "workflow_job_template_nodes": ("workflow_job_template_node", ("workflow_job_template",),
                                    {"workflow_job_template": "workflow_job_templates", "unified_job_template": "unified_job_templates"},
                                    {"identifier": "", "extra_data": {}, "all_parents_must_converge": False}),
    "workflow_approval_templates": ("workflow_approval_template", ("name",), {}, {"description": "", "timeout": 0}),
    "schedules": ("schedule", ("name", "rrule", "unified_job_template"), {"unified_job_template": "unified_job_templates"},
                  {"description": "", "enabled": True, "extra_data": {}}),
    "jobs": ("job", (), {}, {}),
    "project_updates": ("project_update", (), {}, {}),
}
TEMPLATES = ("job_templates", "workflow_job_templates", "projects", "inventory_sources")
ASSOCIATIONS = {
    "organizations": {"galaxy_credentials": "credentials"},
    "projects": {},
    "job_templates": {"credentials": "credentials", "notification_templates_error": "notification_templates"},
    "workflow_job_templates": {"notification_templates_error": "notification_templates",
                               "notification_templates_approvals": "notification_templates"},
    "workflow_job_template_nodes": {f"{when}_nodes": "workflow_job_template_nodes" for when in ("success", "failure", "always")},
}
SECRETS = {"email": ("password",), "slack": ("token",), "webhook": ("password",)}
_COMPARE = {"": lambda have, want: str(have).lower() == want.lower() if isinstance(have, bool) else str(have) == want,
            "iexact": lambda have, want: str(have).lower() == want.lower(),
            "icontains": lambda have, want: want.lower() in str(have).lower()}


class Refused(Exception):
    """An answer that is not a success."""

    def __init__(self, status: int, body: Any) -> None:
        super().__init__(f"{status}: {body}")
        self.status, self.body = status, body


class AWXServer(http.server.ThreadingHTTPServer):
    """``playbooks`` are those that the project's repository holds; lists come in pages of ``page_size``."""

    def __init__(self, playbooks: set[str], page_size: int = 25) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.playbooks, self.page_size = playbooks, page_size
        self.lock = threading.Lock()
        self.numbers = itertools.count(1)
        self.items: dict[str, dict[int, dict[str, Any]]] = {kind: {} for kind in KINDS}
        self.links: dict[tuple[str, int, str], list[int]] = {}
        self.surveys: dict[tuple[str, int], dict[str, Any]] = {}
        self.secrets: dict[int, dict[str, Any]] = {}
        self.writes: list[tuple[str, str]] = []
        for name, kind, secret in (("Machine", "ssh", "ssh_key_data"), ("Vault", "vault", "vault_password"),
                                   ("Amazon Web Services", "cloud", "password"), ("Ansible Galaxy/Automation Hub API Token", "galaxy", "token")):
            self.create("credential_types", {"name": name, "kind": kind, "inputs": {"fields": [{"id": secret, "secret": True}]}})
        galaxy = self.find("credential_types", "Ansible Galaxy/Automation Hub API Token")["id"]
        self.create("credentials", {"name": "Ansible Galaxy", "credential_type": galaxy, "inputs": {}})
        for item in (*self.items["credential_types"].values(), *self.items["credentials"].values()):
            item["managed"] = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def find(self, kind: str, name: str) -> dict[str, Any]:
        """The one object of this name."""
        (found,) = [item for item in self.items[kind].values() if item["name"] == name]
        return found

    def linked(self, kind: str, number: int, name: str) -> list[str]:
        """Names (or identifiers) of what is associated with an object."""
        target = ASSOCIATIONS[kind][name]
        found = [self.items[target][each] for each in self.links.get((kind, number, name), [])]
        return [each.get("name") or each["identifier"] for each in found]

    # -- objects ----------------------------------------------------------------------------------------------------

    def all(self, kind: str) -> dict[int, dict[str, Any]]:
        """The objects of a list; unified job templates are those of four others."""
        if kind == "unified_job_templates":
            return {number: item for each in (*TEMPLATES, "workflow_approval_templates") for number, item in self.items[each].items()}
        if kind not in self.items:
            raise Refused(404, {"detail": "The requested resource could not be found."})
        return self.items[kind]

    def one(self, kind: str, key: str) -> dict[str, Any]:
        """An object by its number, or by its name as AWX's named URLs write it."""
        found = [item for number, item in self.all(kind).items() if key in (str(number), self._named(item))]
        if not found:
            raise Refused(404, {"detail": "Not found."})
        return found[0]

    def _named(self, item: dict[str, Any]) -> str:
        owner = self.items["organizations"].get(item.get("organization") or 0, {}).get("name")
        return str(item.get("name")) + (f"++{owner}" if owner is not None else "")

    def create(self, kind: str, given: dict[str, Any]) -> dict[str, Any]:
        """A new object."""
        type_, required, references, defaults = KINDS[kind]
        missing = [name for name in required if given.get(name) in (None, "")]
        if missing:
            raise Refused(400, {name: ["This field is required."] for name in missing})
        number = next(self.numbers)
        url = f"/api/v2/{kind}/{number}/"
        item = {"id": number, "type": type_, "url": url, "summary_fields": {}, "related": {}, "name": "",
                **dict.fromkeys(references), **json.loads(json.dumps(defaults))}
        if kind == "workflow_job_template_nodes":
            del item["name"]
        if kind in ("job_templates", "workflow_job_templates"):
            item["related"] = {"survey_spec": f"{url}survey_spec/", "launch": f"{url}launch/"}
        self._apply(kind, item, given)
        self.items[kind][number] = item
        if kind == "projects" and item["scm_type"]:
            self._update_project(item)
        return item

    def change(self, kind: str, item: dict[str, Any], given: dict[str, Any]) -> None:
        """Fields that AWX does not know are dropped, as it does."""
        if item.get("managed"):
            raise Refused(403, {"detail": "You do not have permission to perform this action."})
        before = (item.get("scm_url"), item.get("scm_branch"))
        self._apply(kind, item, given)
        if kind == "projects" and before != (item["scm_url"], item["scm_branch"]):
            self._update_project(item)

    def _apply(self, kind: str, item: dict[str, Any], given: dict[str, Any]) -> None:
        _type, _required, references, defaults = KINDS[kind]
        known = {name: value for name, value in given.items() if name in references or name in defaults or name == "name"
                 or name in ("kind", "image", "playbook", "notification_type", "rrule")}
        for name, target in references.items():
            if known.get(name) is not None and known[name] not in self.all(target):
                raise Refused(400, {name: [f'Invalid pk "{known[name]}" - object does not exist.']})
        wanted = {**item, **known}
        same = ("name", "organization", "credential_type", "inventory", "identifier", "workflow_job_template", "unified_job_template")
        unique = same if kind != "workflow_job_template_nodes" else ("identifier", "workflow_job_template")
        for other in self.items[kind].values():
            if other["id"] != item["id"] and all(other.get(name) == wanted.get(name) for name in unique):
                raise Refused(400, {"__all__": [f"{item['type']} with this name already exists."]})
        self._validate(kind, wanted)
        for name, secret in self._secret_fields(kind, wanted):
            box = dict(known.get(name) or {})
            if box.get(secret) not in (None, "", HIDDEN):
                self.secrets.setdefault(item["id"], {})[secret] = box[secret]
                known[name] = box = {**box, secret: HIDDEN}
        item.update(known)
        if kind == "workflow_job_template_nodes" and item["unified_job_template"]:
            item["related"]["unified_job_template"] = self.all("unified_job_templates")[item["unified_job_template"]]["url"]

    def _secret_fields(self, kind: str, item: dict[str, Any]) -> list[tuple[str, str]]:
        if kind == "credentials":
            fields = self.items["credential_types"][item["credential_type"]]["inputs"].get("fields", [])
            return [("inputs", field["id"]) for field in fields if field.get("secret")]
        if kind == "notification_templates":
            return [("notification_configuration", name) for name in SECRETS.get(item["notification_type"], ())]
        return []

    def _validate(self, kind: str, item: dict[str, Any]) -> None:
        if kind == "job_templates":
            if item["playbook"] not in self.playbooks:
                raise Refused(400, {"playbook": ["Playbook not found for project."]})
            if not item["inventory"] and not item["ask_inventory_on_launch"]:
                raise Refused(400, {"inventory": ["Job Template must provide 'inventory' or allow prompting for it."]})
        if kind == "inventory_sources" and item["source"] == "scm":
            if not item["source_project"]:
                raise Refused(400, {"source_project": ["Project required for scm type sources."]})
            types = self.items["credential_types"]
            if item["credential"] and types[self.items["credentials"][item["credential"]]["credential_type"]]["kind"] in ("ssh", "vault", "scm"):
                raise Refused(400, {"credential": ["Credentials of type machine, source control, insights and vault are disallowed for "
                                                   "custom inventory sources."]})
        if kind == "credentials":
            type_ = self.items["credential_types"][item["credential_type"]]["inputs"]
            known = [field["id"] for field in type_.get("fields", [])]
            extra = [name for name in item["inputs"] if name not in known and name != "username"]
            missing = [name for name in type_.get("required", []) if name not in item["inputs"]]
            if extra or missing:
                raise Refused(400, {"inputs": [f"wrong fields: {extra}, required: {missing}"]})
        if kind == "schedules":
            if not re.fullmatch(r"DTSTART(;TZID=[\w/]+)?:\d{8}T\d{6}Z? RRULE:FREQ=\w+;.*INTERVAL=\d+.*", item["rrule"]):
                raise Refused(400, {"rrule": ["Valid DTSTART and INTERVAL required in rrule."]})
            template = self.all("unified_job_templates")[item["unified_job_template"]]
            _accepted, ignored = self._sift(template, item["extra_data"])
            if ignored:
                raise Refused(400, {"extra_data": [f"Variables {', '.join(ignored)} are not allowed on launch. Check the Prompt on Launch "
                                                   "setting on the Job Template to include Extra Variables."]})

    # -- associations, surveys --------------------------------------------------------------------------------------

    def associate(self, kind: str, item: dict[str, Any], name: str, given: dict[str, Any]) -> None:
        target = self.all(ASSOCIATIONS[kind][name])
        if "id" not in given:
            raise Refused(400, {"msg": "\"id\" is required to disassociate"})
        if given["id"] not in target:
            raise Refused(404, {"detail": "Not found."})
        links = self.links.setdefault((kind, item["id"], name), [])
        if given.get("disassociate"):
            links[:] = [each for each in links if each != given["id"]]
            return
        if name == "credentials":
            types = [self.items["credentials"][each]["credential_type"] for each in links]
            mine = target[given["id"]]["credential_type"]
            if mine in types:
                raise Refused(400, {"error": f"Cannot assign multiple {self.items['credential_types'][mine]['name']} credentials."})
        if name.endswith("_nodes") and self._reaches(given["id"], item["id"]):
            raise Refused(400, {"Error": "Cycle detected."})
        if given["id"] not in links:
            links.append(given["id"])

    def _reaches(self, start: int, goal: int) -> bool:
        names = ASSOCIATIONS["workflow_job_template_nodes"]
        after = [each for name in names for each in self.links.get(("workflow_job_template_nodes", start, name), [])]
        return start == goal or any(self._reaches(each, goal) for each in after)

    def survey(self, kind: str, item: dict[str, Any], method: str, given: dict[str, Any]) -> Any:
        key = (kind, item["id"])
        if method == "POST":
            for name in ("name", "description", "spec"):
                if name not in given:
                    raise Refused(400, {"error": f"'{name}' missing from survey spec."})
            for question in given["spec"]:
                for name in ("type", "question_name", "variable", "required"):
                    if name not in question:
                        raise Refused(400, {"error": f"'{name}' missing from survey question."})
                if question["type"] in ("multiplechoice", "multiselect") and not question.get("choices"):
                    raise Refused(400, {"error": "Survey question with choices needs choices."})
            self.surveys[key] = given
        if method == "DELETE":
            self.surveys.pop(key, None)
        return self.surveys.get(key, {}) if method == "GET" else {}

    # -- jobs -------------------------------------------------------------------------------------------------------

    def _update_project(self, project: dict[str, Any]) -> None:
        number = next(self.numbers)
        self.items["project_updates"][number] = {"id": number, "type": "project_update", "status": "successful", "failed": False}
        project["summary_fields"]["current_update"] = {"id": number, "status": "successful"}
        project["scm_revision"] = "0" * 40

    def _sift(self, template: dict[str, Any], variables: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """What a launch may bring and what is ignored: a survey's variables, or all when AWX prompts for variables."""
        kind = "workflow_job_templates" if template["type"].startswith("workflow") else "job_templates"
        asked = self.surveys.get((kind, template["id"]), {}).get("spec", []) if template.get("survey_enabled") else []
        open_ = template.get("ask_variables_on_launch")
        names = {question["variable"] for question in asked}
        taken = {name: value for name, value in variables.items() if open_ or name in names}
        return taken, {name: value for name, value in variables.items() if name not in taken}

    def launch(self, template: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
        """A new job, with what it ignored; 400 when an answer is missing or of another type."""
        variables = given.get("extra_vars") or {}
        variables = json.loads(variables) if isinstance(variables, str) else variables
        taken, ignored = self._sift(template, variables)
        errors = []
        spec = self.surveys.get(("job_templates", template["id"]), {}).get("spec", []) if template["survey_enabled"] else []
        answers = {question["variable"]: question["default"] for question in spec if question.get("default") not in (None, "")}
        answers.update(taken)
        for question in spec:
            name, kind = question["variable"], question["type"]
            if question["required"] and answers.get(name) in (None, ""):
                errors.append(f"'{name}' value missing")
            elif kind == "integer" and not isinstance(answers.get(name, 0), int):
                errors.append(f"Value {answers[name]} for '{name}' expected to be an integer.")
            elif kind == "multiplechoice" and answers.get(name, question["choices"][0]) not in question["choices"]:
                errors.append(f"Value {answers[name]} for '{name}' expected to be one of {question['choices']}.")
        if errors:
            raise Refused(400, {"variables_needed_to_start": errors})
        other = {name: value for name, value in given.items()
                 if name != "extra_vars" and not template.get(f"ask_{name}_on_launch")}
        number = next(self.numbers)
        stored = json.loads(template["extra_vars"] or "{}")
        self.items["jobs"][number] = {
            "id": number, "type": "job", "url": f"/api/v2/jobs/{number}/", "status": "pending", "name": template["name"],
            "job_template": template["id"], "job_type": given.get("job_type", "run") if template["ask_job_type_on_launch"] else "run",
            "extra_vars": json.dumps({**stored, **answers}), "artifacts": {}, "job_explanation": "", "result_traceback": "",
        }
        return {"id": number, "job": number, "ignored_fields": {**other, **({"extra_vars": ignored} if ignored else {})}}

    def step(self, job: dict[str, Any]) -> None:
        """One state further; a job waits while another of its template is active, unless they may run at the same time."""
        template = self.items["job_templates"][job["job_template"]]
        before = [other for other in self.items["jobs"].values()
                  if other["job_template"] == template["id"] and other["id"] < job["id"] and other["status"] in ACTIVE]
        if job["status"] == "pending" and before and not template["allow_simultaneous"]:
            return
        job["status"] = {"pending": "running", "running": "successful"}.get(job["status"], job["status"])

    def active(self, item: dict[str, Any]) -> list[int]:
        """Active jobs that use an object."""
        templates = [each for each in self.items["job_templates"].values()
                     if item["id"] == each["id"] or item["id"] in (each["project"], each["inventory"])]
        return [job["id"] for job in self.items["jobs"].values()
                if job["status"] in ACTIVE and job["job_template"] in [each["id"] for each in templates]]


class _Handler(http.server.BaseHTTPRequestHandler):
    server: AWXServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    do_POST = do_PATCH = do_DELETE = do_GET

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self.server.lock:
            try:
                status, data = self._route(json.loads(body or "{}"))
            except Refused as exc:
                status, data = exc.status, exc.body
        text = b"" if data is None else json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.send_header("X-API-Product-Name", "AWX")
        self.send_header("X-API-Product-Version", "24.6.1")
        self.end_headers()
        self.wfile.write(text)

    def _route(self, given: dict[str, Any]) -> tuple[int, Any]:
        server, method = self.server, self.command
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token not in (ADMIN, AUDITOR):
            raise Refused(401, {"detail": "Authentication credentials were not provided. To establish a login session, visit /api/login/."})
        url = urllib.parse.urlsplit(self.path)
        if not url.path.startswith("/api/v2/") or not url.path.endswith("/"):
            raise Refused(404, {"detail": "The requested resource could not be found."})
        kind, *rest = [urllib.parse.unquote(part) for part in url.path.removeprefix("/api/v2/").strip("/").split("/")]
        if method != "GET":
            if token == AUDITOR:
                raise Refused(403, {"detail": "You do not have permission to perform this action."})
            server.writes.append((method, url.path))
        if not rest:
            if method == "POST" and kind in KINDS and kind not in ("jobs", "project_updates", "workflow_approval_templates"):
                return 201, server.create(kind, given)
            if method != "GET":
                raise Refused(405, {"detail": f'Method "{method}" not allowed.'})
            return 200, self._page(server.all(kind).values(), url)
        item = server.one(kind, rest[0])
        if len(rest) == 1:
            return self._object(kind, item, method, given)
        return self._under(kind, item, rest[1], given, url)

    def _object(self, kind: str, item: dict[str, Any], method: str, given: dict[str, Any]) -> tuple[int, Any]:
        server = self.server
        if method == "PATCH":
            server.change(kind, item, given)
        elif method == "DELETE":
            active = server.active(item)
            if active:
                raise Refused(409, {"error": "Resource is being used by running jobs.", "active_jobs": active})
            del server.items[kind][item["id"]]
            return 204, None
        elif method == "POST":
            raise Refused(405, {"detail": 'Method "POST" not allowed.'})
        elif kind == "jobs":
            server.step(item)
        return 200, item

    def _under(self, kind: str, item: dict[str, Any], name: str, given: dict[str, Any], url: urllib.parse.SplitResult) -> tuple[int, Any]:
        server, method = self.server, self.command
        if name in ASSOCIATIONS.get(kind, {}):
            if method == "POST":
                server.associate(kind, item, name, given)
                return 204, None
            target = server.all(ASSOCIATIONS[kind][name])
            return 200, self._page([target[each] for each in server.links.get((kind, item["id"], name), [])], url)
        if name == "survey_spec" and "survey_spec" in item["related"]:
            return 200, server.survey(kind, item, method, given)
        if kind == "job_templates" and name == "launch" and method == "POST":
            return 201, server.launch(item, given)
        if kind == "job_templates" and name == "jobs":
            return 200, self._page([job for job in server.items["jobs"].values() if job["job_template"] == item["id"]], url)
        if kind == "jobs" and name == "cancel" and method == "POST":
            if item["status"] not in ACTIVE:
                raise Refused(405, {"detail": 'Method "POST" not allowed.'})
            item["status"] = "canceled"
            return 202, {}
        if kind == "workflow_job_template_nodes" and name == "create_approval_template" and method == "POST":
            if item["unified_job_template"]:
                raise Refused(400, {"error": "Node already has a template."})
            approval = server.create("workflow_approval_templates", given)
            server.change(kind, item, {"unified_job_template": approval["id"]})
            return 201, approval
        raise Refused(404, {"detail": "The requested resource could not be found."})

    def _page(self, items: Any, url: urllib.parse.SplitResult) -> dict[str, Any]:
        query = dict(urllib.parse.parse_qsl(url.query))
        size = min(int(query.pop("page_size", self.server.page_size)), 200)
        page = int(query.pop("page", 1))
        order = query.pop("order_by", "id")
        found = [item for item in items if self._matches(item, query)]
        found.sort(key=lambda item: item[order.lstrip("-")], reverse=order.startswith("-"))
        if page > 1 and (page - 1) * size >= len(found):
            raise Refused(404, {"detail": "Invalid page."})
        follow = urllib.parse.urlencode({**query, "order_by": order, "page_size": size, "page": page + 1})
        return {"count": len(found), "next": f"{url.path}?{follow}" if page * size < len(found) else None, "previous": None,
                "results": found[(page - 1) * size:page * size]}

    def _matches(self, item: dict[str, Any], query: dict[str, str]) -> bool:
        """AWX's filters: all must hold, of those that begin with or__ at least one; fields that do not exist are refused."""
        either, answers = [], []
        for key, want in query.items():
            name, _comparison, how = key.removeprefix("or__").partition("__")
            if name not in item or how not in _COMPARE:
                if name in ("organization", "inventory"):  # of unified templates, some kinds have none
                    answers.append(False)
                    continue
                raise Refused(400, {"detail": f"{item['type']} has no field named '{name}'"})
            (either if key.startswith("or__") else answers).append(_COMPARE[how](item[name], want))
        return all(answers) and (not either or any(either))

    def log_message(self, *_args: Any) -> None:
        """Quiet."""
