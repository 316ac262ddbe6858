// What waits for the CRM, and how the worker is.

import { add, badge, facts, h, notice, setText, show } from "./dom.js";
import { get } from "./server.js";
import { follow } from "./main.js";
import { retryButton } from "./call.js";
import * as words from "./words.js";

const AGAIN_MS = 5000;

function crmFacts(crm) {
  const endpoint = (name, state) => [name, h("span", {}, badge(words.breaker(state.breaker), state.breaker === "closed" ? "good" : state.breaker === "open" ? "bad" : "odd"), state.last_accepted ? ` last accepted ${words.fromNow(state.last_accepted)}` : " nothing accepted since the start")];
  return facts(["Host", crm.host], endpoint("Recordings", crm.upload), endpoint("Call data", crm.call_data));
}

export function queuePage(content) {
  const stop = new AbortController();
  const summary = h("p", { class: "lead" }, "Looking …");
  const problem = h("div");
  const list = h("ul", { class: "queue" });
  const more = h("button", { type: "button", hidden: true }, "Show more");
  show(content, h("h1", {}, "Queue"), summary, problem, list, more);
  let next = 0;
  async function load() {
    more.hidden = true;
    try {
      const page = await get(`queue?skip=${next}`, stop.signal);
      if (next === 0) {
        setText(summary, page.all ? `${page.all} ${page.all === 1 ? "call waits" : "calls wait"} for delivery, oldest first.` : "Nothing waits: the CRM has everything.");
        show(problem, !page.delivers && notice("CRM_BASE_URL is not set: nothing is delivered."), page.crm && [page.crm.upload, page.crm.call_data].some((part) => part.breaker === "open") && notice(`The CRM (${page.crm.host}) does not take anything at present; it is tried again by itself.`));
      }
      add(list, page.records.map(entry));
      next = page.next;
      more.hidden = next === null;
    } catch (error) {
      if (error.name !== "AbortError") show(problem, notice(error.message));
    }
  }
  function entry(record) {
    const why = record.last_error ?? (record.recording === "waiting" ? "The recording is not there yet." : record.attempts ? "" : "Not tried yet.");
    const state = record.status === null ? badge("Unreadable", "bad") : record.status === "failed" ? badge("Refused", "bad") : badge(record.next_attempt ? `Next attempt ${words.fromNow(record.next_attempt)}` : "Due", "odd");
    return h("li", { class: "card" },
      h("div", { class: "row" }, h("h2", {}, h("a", { href: `#/call/${encodeURIComponent(record.session_id)}` }, record.call_id ?? record.session_id)), state),
      h("p", { class: "details" }, [record.call_end && `ended ${words.when(record.call_end)}`, record.recording && `recording: ${words.partState(record.recording).toLowerCase()}`, record.call_data && `call data: ${words.partState(record.call_data).toLowerCase()}`, record.attempts && `${record.attempts} attempts`].filter(Boolean).join(" · ")),
      why && h("p", { class: record.last_error ? "error" : "muted" }, why),
      record.status !== null && retryButton(record.session_id, again, "Try now"));
  }
  function again() {
    next = 0;
    list.replaceChildren();
    load();
  }
  more.addEventListener("click", load);
  load();
  return () => stop.abort();
}

export function workerPage(content) {
  const stop = new AbortController();
  const problem = h("div");
  const place = h("div", { class: "cards" });
  show(content, h("h1", {}, "Worker"), problem, place);
  let timer = null;
  const card = (title, ...children) => h("section", { class: "card" }, h("h2", {}, title), ...children);
  const meter = (label, value, most, text) => h("div", { class: "measure" }, h("div", { class: "row" }, h("span", {}, label), h("b", {}, text)), h("progress", { value: Math.min(value, most), max: most || 1, "aria-label": label }));
  async function load() {
    try {
      const worker = await get("worker", stop.signal);
      show(problem, worker.disk_problem && notice(worker.disk_problem), worker.draining && notice("The worker is stopping: it takes no new calls.", "hint"));
      show(place,
        card("Calls", meter("Calls", worker.active_jobs, worker.slots, `${worker.active_jobs} of ${worker.slots}`), meter("Load told to LiveKit", worker.load, 1, worker.load.toFixed(2)), worker.inherited_calls > 0 && h("p", {}, `${worker.inherited_calls} calls of an earlier worker go on.`)),
        card("LiveKit", h("p", {}, worker.registered ? badge("Registered", "good") : badge("Not registered", "bad")), worker.connection_problem && h("p", { class: "error" }, worker.connection_problem), facts(["Server", worker.livekit_host], ["Agent name", worker.agent_name || "none: every new room"], ["Worker", worker.worker_id])),
        card("CRM", worker.crm ? crmFacts(worker.crm) : h("p", { class: "error" }, "CRM_BASE_URL is not set: nothing is delivered."), h("p", {}, h("a", { href: "#/queue" }, `${worker.records_waiting ?? "An unknown number of"} ${worker.records_waiting === 1 ? "call waits" : "calls wait"}`))),
        card("Disk", h("p", {}, worker.disk_problem ? badge("Takes no calls", "bad") : badge("Fine", "good")), facts(["Free", words.bytes(worker.disk_free_bytes)], ["No calls below", words.bytes(worker.disk_min_free_bytes)], ["Folder", worker.data_dir])),
        card("Process", facts(["Version", worker.version], ["Started", words.when(worker.started)], ["Memory", words.bytes(worker.memory_bytes)])));
      timer = setTimeout(load, AGAIN_MS);
    } catch (error) {
      if (error.name === "AbortError") return;
      show(problem, notice(error.message));
      timer = setTimeout(load, AGAIN_MS);
    }
  }
  load();
  // Whether it takes calls is seen at once.
  let takes = null;
  const unfollow = follow((event) => {
    if (takes !== null && takes !== event.worker.not_ready) {
      clearTimeout(timer);
      load();
    }
    takes = event.worker.not_ready;
  });
  return () => {
    stop.abort();
    unfollow();
    clearTimeout(timer);
  };
}
