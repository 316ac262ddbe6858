// Finished calls: a search, and the list, newest first.

import { add, announce, badge, h, notice, setText, show } from "./dom.js";
import { get } from "./server.js";
import * as words from "./words.js";

/** Requests that one search makes by itself before it asks whether to go on. */
const MOST_REQUESTS = 20;
const ENOUGH = 50;

function choice(id, label, options, value) {
  const select = h("select", { id, name: id }, options.map(([name, text]) => h("option", { value: name, selected: name === value }, text)));
  return h("div", { class: "field" }, h("label", { for: id }, label), select);
}

function input(id, label, type, value, more = {}) {
  return h("div", { class: ["field", type === "search" && "wide"] }, h("label", { for: id }, label), h("input", { id, name: id, type, value, ...more }));
}

/** Days of this machine as times. */
function question(query) {
  const asked = new URLSearchParams();
  for (const name of ["text", "status", "outcome"]) if (query.get(name)) asked.set(name, query.get(name));
  const day = (text, after) => {
    const at = new Date(`${text}T00:00:00`);
    at.setDate(at.getDate() + after);
    return at.toISOString();
  };
  if (query.get("from")) asked.set("from", day(query.get("from"), 0));
  if (query.get("to")) asked.set("to", day(query.get("to"), 1));
  return asked;
}

export function callsPage(content, { query }) {
  const stop = new AbortController();
  const form = h("form", { class: "search card", role: "search" },
    input("text", "Number or id", "search", query.get("text") ?? "", { autocomplete: "off", maxlength: 200, placeholder: "0123, CALL-…, room, job" }),
    choice("status", "Delivery", [["", "All"], ["waiting", "Waiting"], ["failed", "Refused"], ["archived", "Delivered"]], query.get("status")),
    choice("outcome", "Outcome", [["", "All"], ...["completed", "no_answer", "busy", "failed", "voicemail", "recovered"].map((name) => [name, words.outcome(name)])], query.get("outcome")),
    input("from", "From", "date", query.get("from") ?? ""),
    input("to", "To", "date", query.get("to") ?? ""),
    h("button", { class: "main" }, "Search"));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const asked = new URLSearchParams([...new FormData(form)].filter(([, value]) => value));
    location.hash = `#/calls${asked.size ? `?${asked}` : ""}`;
  });
  const summary = h("p", { class: "lead" }, "Looking …");
  const problems = h("div");
  const rows = h("tbody", { role: "rowgroup" });
  const heads = ["Began", "Number", "Outcome", "Length", "Delivery", "Persona", "Leads"];
  const table = h("table", { class: "calls", role: "table", "aria-label": "Calls", hidden: true },
    h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, heads.map((head) => h("th", { scope: "col", role: "columnheader" }, head)))), rows);
  const more = h("button", { type: "button", hidden: true }, "Show more");
  show(content, h("h1", {}, "Calls"), form, summary, problems, table, more);

  let after = null;
  let shown = 0;
  async function load() {
    more.hidden = true;
    let found = 0;
    try {
      for (let n = 0; n < MOST_REQUESTS && found < ENOUGH; n++) {
        const asked = question(query);
        if (after) asked.set("after", after);
        const page = await get(`calls?${asked}`, stop.signal);
        found += page.calls.length;
        shown += page.calls.length;
        add(rows, page.calls.map(row));
        table.hidden = shown === 0;
        add(problems, page.problems.map((text) => notice(text, "hint")));
        after = page.next;
        const back = page.looked_back_to ? `, looked back to ${words.when(page.looked_back_to)}` : "";
        const all = [...question(query)].length ? "" : ` of ${page.all}`;
        setText(summary, shown ? `${shown}${all} ${shown === 1 ? "call" : "calls"}${back}.` : after ? `None yet${back} …` : "No such call.");
        if (!after) break;
      }
      announce(summary.textContent);
      more.hidden = !after;
      setText(more, found < ENOUGH ? "Search further back" : "Show more");
    } catch (error) {
      if (error.name !== "AbortError") show(problems, notice(error.message));
    }
  }
  more.addEventListener("click", load);
  load();
  return () => stop.abort();
}

function row(call) {
  const cell = (label, ...children) => h("td", { role: "cell", "data-label": label }, ...children);
  return h("tr", { role: "row" },
    cell("Began", h("a", { href: `#/call/${encodeURIComponent(call.session_id)}` }, words.when(call.call_start ?? call.call_end))),
    cell("Number", h("span", { "aria-hidden": "true", class: "arrow" }, words.arrow(call.direction)), h("span", { class: "for-readers" }, words.direction(call.direction), " "), words.party(call)),
    cell("Outcome", call.outcome ? badge(words.outcome(call.outcome), words.outcomeKind(call.outcome)) : "–"),
    cell("Length", words.length(call.duration_s)),
    cell("Delivery", badge(words.standing(call.status), words.standingKind(call.status))),
    cell("Persona", call.persona ?? "–"),
    cell("Leads", call.leads || "–"));
}
