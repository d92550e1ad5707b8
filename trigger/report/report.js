// The page: tiles, charts and tables for the chosen span of time. Every text of the fleet goes in as text.

const data = JSON.parse(document.getElementById("data").textContent);
const GROUPS = [["serving", "in service"], ["coming", "coming"], ["trouble", "in trouble"], ["leaving", "leaving"]];
const LOOKS = ["part1", "part2", "part3", "part4", "part5", "part6"];
const ROWS = 12;

// -- words ----------------------------------------------------------------------------------------------------------
function took(seconds) {
  if (seconds < 90) return (seconds < 10 ? Math.round(seconds * 10) / 10 : Math.round(seconds)) + " s";
  if (seconds < 5400) return Math.floor(seconds / 60) + " min" + (seconds < 600 && seconds % 60 >= 1 ? " " + Math.round(seconds % 60) + " s" : "");
  return seconds < 172800 ? (seconds / 3600).toFixed(1) + " h" : (seconds / 86400).toFixed(1) + " days";
}
function share(value) { return (value * 100).toFixed(value > 0 && value < 0.0995 ? 2 : 1) + " %"; }
function amount(value) { return Math.abs(value) >= 100 ? Math.round(value).toLocaleString("en") : (Math.round(value * 100) / 100).toString(); }
function money(hours) { return data.costs && data.costs.node_hour > 0 ? (hours * data.costs.node_hour).toFixed(2) + " " + data.costs.currency : ""; }
function median(values) { const sorted = [...values].sort((a, b) => a - b); return sorted[Math.floor((sorted.length - 1) / 2)]; }
function milliseconds(seconds) { return seconds < 1 ? Math.round(seconds * 1000) + " ms" : seconds.toFixed(1) + " s"; }

// -- what a span of time comes to -----------------------------------------------------------------------------------
function totals(a, b) {
  const found = {hours: 0, known: 0, most: data.policy.min_nodes, short: 0, weighed: 0};
  together([data.existing], a, b, (from, to, [count]) => { if (count !== null) { found.hours += count * (to - from) / 3600; found.known += to - from; } });
  together([data.needed, data.up], a, b, (from, to, [need, up]) => {
    if (need === null || up === null) return;
    found.most = Math.max(found.most, need);
    found.weighed += to - from;
    if (need > up) found.short += to - from;
  });
  const {width, mean, high = mean} = data.load;
  let sum = 0, count = 0, peak = 0;
  for (let i = Math.max(0, Math.floor(a / width)); i < Math.min(mean.length, Math.ceil(b / width)); i++) {
    if (mean[i] !== null) { sum += mean[i]; count++; peak = Math.max(peak, high[i]); }
  }
  return {...found, mean: count ? sum / count : null, peak, fixed: found.most * found.known / 3600};
}
function tiles(view) {
  const sums = totals(view.a, view.b), saved = sums.fixed - sums.hours;
  const within = list => list.filter(one => one.at >= view.a && one.at <= view.b);
  const decisions = within(data.decisions), steps = within(data.activities), failed = steps.filter(one => one.status === "failed");
  const out = decisions.filter(one => one.desired > one.size).length;
  const rows = [
    [amount(sums.hours), "node-hours" + (money(1) ? ": " + money(sums.hours) : "")],
    sums.fixed > 0 ? [(saved < 0 ? "−" : "") + share(Math.abs(saved) / sums.fixed), (saved < 0 ? "more than " : "saved against ") + sums.most + " nodes all the time: "
      + (money(1) ? money(Math.abs(saved)) : amount(Math.abs(saved)) + " node-hours")] : ["–", "nothing is known of this time"],
    [sums.weighed ? share(sums.short / sums.weighed) : "–", "of the time fewer nodes in service than needed"],
    [sums.mean === null ? "–" : amount(sums.mean), "requests in service on average, " + amount(sums.peak) + " at most"],
    [String(decisions.length), "decisions to change the size: " + out + " out, " + (decisions.length - out) + " in"],
  ];
  rows.push(data.kind === "simulation" ? [data.requests_lost, "requests turned away, by the queueing model"]
    : [String(failed.length), failed.length === 1 ? "step failed of " + steps.length : "steps failed of " + steps.length]);
  return element("div", {class: "tiles"}, ...rows.map(([value, text]) => element("div", {class: "tile"}, element("b", {}, String(value)), element("span", {}, text))));
}

// -- sections -------------------------------------------------------------------------------------------------------
function key(items) {
  return element("div", {class: "key"}, ...items.map(([look, text, shape = ""]) => {
    const mark = element("i", {class: shape});
    mark.style[shape === "dash" ? "borderColor" : "background"] = "var(--" + look + ")";
    return element("span", {}, mark, text);
  }));
}
function section(title, legend, ...body) {
  return element("section", {}, element("div", {class: "top"}, element("h2", {}, title), legend), ...body);
}
function tip(title, rows, list) {
  const made = element("div", {}, element("b", {}, title));
  for (const [name, value] of rows) made.append(element("div", {class: "row"}, element("span", {}, name), element("span", {}, value)));
  if (list) made.append(element("ol", {}, ...list.map(text => element("li", {}, text))));
  return made;
}
function reasons(decision) { return decision.why.map(([text, count]) => text + " → " + count); }

function loadChart(view) {
  const {width, mean, low = mean, high = mean} = data.load;
  const top = (a, b) => {
    let most = Math.max(extreme(data.expected, a, b), 1);
    for (let i = Math.max(0, Math.floor(a / width)); i < Math.min(high.length, Math.ceil(b / width)); i++) if (high[i] > most) most = high[i];
    // A capacity far above the load would press it flat: it is drawn as far as it fits.
    return Math.max(most, Math.min(extreme(data.capacity, a, b), most * 2.2));
  };
  return new Chart(view, {height: 250, label: "Load, capacity and forecast over time", top,
    paint: chart => {
      chart.area(data.expected, 1, 2, "forecast-band");
      chart.steps(data.expected, "forecast", {width: 1, index: 2});
      chart.steps(data.capacity, "capacity", {width: 1.4, dash: [5, 4]});
      chart.buckets(data.load, "load", "band");
    },
    told: t => {
      const i = Math.min(mean.length - 1, Math.floor(t / width)), rows = [];
      if (mean[i] === null) rows.push(["load", "not known"]);
      else {
        rows.push(["load", amount(mean[i]) + (high[i] - low[i] > 0.05 ? " (" + amount(low[i]) + " to " + amount(high[i]) + ")" : "")]);
        const capacity = valueAt(data.capacity, t);
        if (capacity) rows.push(["capacity", amount(capacity) + " workers, " + share(mean[i] / capacity) + " busy"]);
      }
      if (valueAt(data.expected, t) !== null) rows.push(["forecast", amount(valueAt(data.expected, t)) + " to " + amount(valueAt(data.expected, t, 2))]);
      return tip(view.clock.full(t), rows);
    }});
}

function nodesChart(view) {
  const stacked = [];
  together(GROUPS.map(([name]) => data.groups[name]), 0, view.length, (from, _to, values) => {
    let sum = 0;
    stacked.push([from, ...(values[0] === null ? [null, null, null, null, null] : [0, ...values.map(value => sum += value || 0)])]);
  });
  const near = (chart, x, y) => {
    let best = null, closest = 11;
    for (const one of data.decisions) {
      if (one.at < view.a || one.at > view.b) continue;
      // On the point, or anywhere above or below it.
      const aside = Math.abs(chart.x(one.at) - x), away = Math.min(Math.hypot(aside, chart.y(one.desired) - y), aside <= 3 ? 10 + aside / 4 : Infinity);
      if (away < closest) { closest = away; best = one; }
    }
    return best;
  };
  return new Chart(view, {height: 280, label: "Nodes by phase over time, with decisions",
    top: (a, b) => Math.max(extreme(stacked, a, b), extreme(data.desired, a, b), extreme(data.needed, a, b), data.policy.min_nodes),
    paint: chart => {
      GROUPS.forEach(([name], i) => chart.area(stacked, i + 1, i + 2, name));
      chart.steps(data.floor, "forecast", {width: 2.2});
      chart.steps(data.needed, "needed", {width: 1, most: true});
      chart.steps(data.desired, "desired", {width: 1.3, dash: [2, 3]});
      const shown = data.decisions.filter(one => one.at >= view.a && one.at <= view.b), size = shown.length > 250 ? 2 : shown.length > 80 ? 3 : 4.5;
      for (const one of shown) {
        chart.pen.beginPath();
        chart.pen.fillStyle = colour(one.desired > one.size ? "out" : "in");
        chart.pen.strokeStyle = colour("card"); chart.pen.lineWidth = 1;
        chart.pen.arc(chart.x(one.at), chart.y(one.desired), size, 0, 7);
        chart.pen.fill();
        if (size > 2) chart.pen.stroke();
      }
    },
    told: (t, chart, x, y) => {
      const one = near(chart, x, y);
      if (one) return tip(view.clock.full(one.at) + ": " + one.size + " → " + one.desired, [], reasons(one));
      const rows = Object.entries(data.phases).map(([name, points]) => [name.replaceAll("_", " "), valueAt(points, t)]).filter(([, count]) => count);
      if (valueAt(data.existing, t) === null) return tip(view.clock.full(t), [["nodes", "not known"]]);
      rows.push(["wanted", valueAt(data.desired, t)]);
      if (valueAt(data.needed, t) !== null) rows.push(["needed by the load", valueAt(data.needed, t)]);
      if (valueAt(data.floor, t) !== null) rows.push(["floor", valueAt(data.floor, t)]);
      return tip(view.clock.full(t), rows.map(([name, value]) => [name, String(value ?? "not known")]));
    }});
}

function lanesChart(view) {
  const each = 36, looks = name => name === "Schedule" || name === "Events" ? "forecast" : name.startsWith("Forecast") || name.startsWith("Trend") ? "load"
    : name.startsWith("Paused") ? "coming" : "trouble";
  return new Chart(view, {height: TOP + BOTTOM + each * data.lanes.length, label: "Times in which something held the fleet", axis: false, top: () => 1,
    paint: chart => {
      data.lanes.forEach(([name, spans], row) => {
        const y = TOP + row * each;
        chart.pen.textAlign = "left"; chart.pen.fillStyle = colour("soft");
        chart.pen.fillText(name, LEFT + 2, y + 13);
        chart.pen.fillStyle = colour(looks(name));
        for (const [from, to] of spans) {
          if (to < view.a || from > view.b) continue;
          chart.pen.fillRect(chart.x(from), y + 19, Math.max(3, chart.x(to) - chart.x(from)), 11);
        }
      });
    },
    told: (t, chart, x, y) => {
      const lane = data.lanes[Math.floor((y - TOP) / each)];
      const span = lane && lane[1].find(([from, to]) => x >= chart.x(from) - 3 && x <= Math.max(chart.x(to), chart.x(from) + 3) + 3);
      return span ? tip(lane[0], [["from", view.clock.full(span[0])], ["until", view.clock.full(span[1])]], [span[2]]) : null;
    }});
}

// A table that shows the first rows, and more when asked.
function listing(head, rows) {
  const body = element("tbody", {});
  const more = element("button", {type: "button", class: "more", click: () => grow()});
  let shown = 0;
  function grow() {
    for (const row of rows.slice(shown, shown + ROWS)) body.append(row());
    shown = Math.min(rows.length, shown + ROWS);
    more.hidden = shown >= rows.length;
    more.textContent = "Show more (" + (rows.length - shown) + " left)";
  }
  grow();
  return element("div", {}, element("div", {class: "scroll"}, element("table", {}, element("thead", {}, element("tr", {}, ...head)), body)), more);
}
const head = (text, number) => element("th", {scope: "col", class: number ? "number" : null}, text);
const cell = (content, look) => element("td", {class: look || null}, content);

function activities(view) {
  const shown = data.activities.filter(one => one.at >= view.a && one.at <= view.b);
  if (data.kind === "simulation") return element("p", {class: "note"}, "A simulated run has no steps of its own; it takes the times that it was given.");
  if (!shown.length) return element("p", {class: "note"}, "No step was taken in this time.");
  const kinds = new Map();
  for (const one of shown) { if (!kinds.has(one.action)) kinds.set(one.action, []); kinds.get(one.action).push(one); }
  const summary = listing([head("action"), head("steps", true), head("median", true), head("longest", true), head("failed", true)], [...kinds].sort().map(([action, all]) => () => {
    const done = all.filter(one => one.status === "done").map(one => one.seconds), failed = all.filter(one => one.status === "failed").length;
    return element("tr", {}, cell(action), cell(String(all.length), "number"), cell(done.length ? took(median(done)) : "–", "number"),
      cell(done.length ? took(Math.max(...done)) : "–", "number"), cell(String(failed), failed ? "number failed" : "number"));
  }));
  const longest = Math.max(1, ...shown.map(one => one.seconds)), names = [...new Set(shown.flatMap(one => one.steps.map(([name]) => name)))];
  const look = name => "var(--" + LOOKS[names.indexOf(name) % LOOKS.length] + ")";
  const list = listing([head("begun"), head("action"), head("node"), head("result"), head("took", true), head("parts")], [...shown].reverse().map(one => () => {
    const bars = element("div", {class: "bars"});
    bars.style.width = Math.max(2, 100 * one.seconds / longest) + "%";
    for (const [name, seconds] of one.steps) {
      const bar = element("i", {title: name + " " + took(seconds)});
      bar.style.width = 100 * seconds / Math.max(one.seconds, 0.1) + "%";
      bar.style.background = look(name);
      bars.append(bar);
    }
    const parts = element("div", {}, bars, element("span", {class: "soft"}, one.steps.map(([name, seconds]) => name.replaceAll("_", " ") + " " + took(seconds)).join(", ") || "no parts recorded"));
    return element("tr", {}, cell(view.clock.full(one.at), "when"), cell(one.action), cell(element("span", {title: one.reason}, one.node), "name"),
      cell(one.status + (one.message && one.status !== "done" ? ": " + one.message : ""), one.status === "failed" ? "failed" : ""), cell(took(one.seconds), "number"), cell(parts, "parts"));
  }));
  return element("div", {}, summary, list,
    data.more_activities ? element("p", {class: "note"}, "Only the newest " + data.activities.length + " steps are kept in this page; " + data.more_activities + " older ones are in the ledger.") : null);
}

function decisionTable(view) {
  const shown = data.decisions.filter(one => one.at >= view.a && one.at <= view.b).reverse();
  if (!shown.length) return element("p", {class: "note"}, "The size was never to be changed in this time.");
  return element("div", {}, listing([head("time"), head("nodes"), head("why")], shown.map(one => () => element("tr", {}, cell(view.clock.full(one.at), "when"),
    cell(one.size + " → " + one.desired, one.desired > one.size ? "size out" : "size in"), cell(element("ol", {}, ...reasons(one).map(text => element("li", {}, text))))))),
    data.more_decisions ? element("p", {class: "note"}, "Only the newest " + data.decisions.length + " decisions are kept in this page; " + data.more_decisions + " older ones are in the ledger.") : null);
}

let sortedBy = "busy";
function tenants() {
  if (!data.tenants.rows.length) return element("p", {class: "note"}, data.tenants.note);
  const rows = [...data.tenants.rows].sort((a, b) => b[sortedBy] - a[sortedBy]), most = Math.max(...rows.map(one => one.busy), 1e-9);
  const by = (name, text, look = "number") => element("th", {scope: "col", class: look}, element("button", {type: "button", "aria-sort": name === sortedBy ? "descending" : null,
    click: event => { sortedBy = name; event.target.closest(".tenants").replaceChildren(tenants()); }}, text));
  return element("div", {}, listing([head("tenant"), by("busy", "worker time", "share"), by("requests", "requests"), by("mean", "mean"), by("p95", "95 % within"), by("errors", "errors (5xx)")], rows.map(one => () => {
    const bar = element("i", {});
    bar.style.width = 100 * one.busy / most + "%";
    return element("tr", {}, cell(one.tenant, "name"), element("td", {class: "share"}, bar, element("span", {}, took(one.busy))), cell(one.requests.toLocaleString("en"), "number"),
      cell(milliseconds(one.mean), "number"), cell(milliseconds(one.p95), "number"), cell(String(one.errors), one.errors ? "number failed" : "number"));
  })), element("p", {class: "note"}, data.tenants.note));
}

// -- the page -------------------------------------------------------------------------------------------------------
class View {
  constructor(length, clock) { Object.assign(this, {a: 0, b: length, length, clock, watchers: []}); }
  set(a, b) {
    a = Math.max(0, Math.min(a, this.length - 60));
    this.a = a; this.b = Math.min(this.length, Math.max(b, a + 60));
    for (const watcher of this.watchers) watcher();
  }
}

function theme() {
  const wanted = matchMedia("(prefers-color-scheme: dark)"), button = document.getElementById("theme"), names = ["auto", "light", "dark"];
  let chosen = "auto";
  // A page from a folder may not remember anything in some browsers.
  try { chosen = localStorage.getItem("moodle-fleet-theme") || "auto"; } catch { /* then as the system has it */ }
  const changed = [];
  function apply() {
    document.documentElement.dataset.theme = chosen === "auto" ? (wanted.matches ? "dark" : "light") : chosen;
    button.textContent = {auto: "◐ Auto", light: "☀ Light", dark: "☾ Dark"}[chosen];
    for (const call of changed) call();
  }
  button.addEventListener("click", () => {
    chosen = names[(names.indexOf(chosen) + 1) % names.length];
    try { localStorage.setItem("moodle-fleet-theme", chosen); } catch { /* as above */ }
    apply();
  });
  wanted.addEventListener("change", apply);
  apply();
  return changed;
}

function filter(view) {
  const from = document.getElementById("from"), until = document.getElementById("until"), presets = document.getElementById("presets");
  const choices = [["1 hour", 3600], ["6 hours", 21600], ["1 day", 86400], ["7 days", 604800]].filter(([, seconds]) => seconds < view.length);
  const buttons = [...choices, ["All", view.length]].map(([text, seconds]) => [element("button", {type: "button", click: () => view.set(view.length - seconds, view.length)}, text), seconds]);
  presets.append(...buttons.map(([button]) => button));
  const typed = () => {
    const a = view.clock.fromInput(from.value), b = view.clock.fromInput(until.value);
    if (a !== null && b !== null && b > a) view.set(a, b);
  };
  from.addEventListener("change", typed);
  until.addEventListener("change", typed);
  const show = () => {
    from.value = view.clock.toInput(view.a);
    until.value = view.clock.toInput(view.b);
    for (const [button, seconds] of buttons) button.setAttribute("aria-pressed", String(Math.abs(view.length - view.b) < 1 && Math.abs(view.b - view.a - seconds) < 1));
    document.getElementById("shown").textContent = took(view.b - view.a) + " shown · drag over a chart to zoom, double-click for all";
  };
  view.watchers.push(show);
  show();
}

function start() {
  const recoloured = theme(), main = document.getElementById("main");
  document.getElementById("subtitle").textContent = data.subtitle;
  if (!data.checks) {
    document.getElementById("filter").hidden = true;
    document.getElementById("filter").style.display = "none";
    main.replaceChildren(element("section", {}, element("p", {class: "empty"}, data.empty)));
    return;
  }
  const view = new View(data.end - data.begin, new Clock(data.begin, data.timezone));
  const charts = [loadChart(view), nodesChart(view), ...(data.lanes.length ? [lanesChart(view)] : [])];
  const changing = [[element("div", {}), tiles], [element("div", {}), activities], [element("div", {}), decisionTable]];
  const forecast = data.expected.some(one => one[1] !== null) ? [["forecast", "forecast until a launch is done", "area"]] : [];
  main.replaceChildren(
    changing[0][0],
    section("Load", key([["load", "requests in service and waiting: mean, least and greatest"], ["capacity", "capacity (workers in service)", "dash"], ...forecast]), charts[0].host),
    section("Nodes", key([...GROUPS.map(([look, text]) => [look, text, "area"]), ["desired", "wanted", "dash"], ["needed", "needed by the load"],
      ...(data.floor.some(one => one[1] !== null) ? [["forecast", "floor by schedule or events"]] : []), ["out", "decision to grow", "dot"], ["in", "to shrink", "dot"]]), charts[1].host),
    charts[2] ? section("Schedule, events, brakes", null, charts[2].host) : "",
    section("Steps and what they took", null, changing[1][0]),
    section("Tenants", null, element("div", {class: "tenants"}, tenants())),
    section("Decisions and their reasons", null, changing[2][0]),
    element("p", {class: "note"}, data.notes.join(" ")),
  );
  const draw = () => charts.forEach(chart => chart.draw());
  const fill = () => { for (const [host, make] of changing) host.replaceChildren(make(view)); };
  filter(view);
  view.watchers.push(draw, fill);
  recoloured.push(draw);
  fill();
  draw();
  let width = window.innerWidth;
  window.addEventListener("resize", () => { if (window.innerWidth !== width) { width = window.innerWidth; draw(); } });
}

start();
// When everything is drawn, for whoever measures it.
document.documentElement.dataset.drawn = String(Math.round(performance.now()));
