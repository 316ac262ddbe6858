// Which page is shown, who is signed in, and what all pages share: the stream of what is live.

import { announce, h, notice, setText, show } from "./dom.js";
import { get, post } from "./server.js";
import { livePage } from "./live.js";
import { callsPage } from "./calls.js";
import { callPage } from "./call.js";
import { queuePage, workerPage } from "./status.js";

const content = document.getElementById("content");
const PAGES = { live: livePage, calls: callsPage, call: callPage, queue: queuePage, worker: workerPage };
const TITLES = { live: "Live", calls: "Calls", call: "Call", queue: "Queue", worker: "Worker" };

/** What the page shows, and how to leave it. */
let leave = () => {};
let about = null;
/** The newest of the events, and who wants the next. */
let newest = null;
const listeners = new Set();

export function follow(listener) {
  listeners.add(listener);
  if (newest) listener(newest);
  return () => listeners.delete(listener);
}

export const settings = () => about ?? {};

function route() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const [name, ...rest] = path.split("/");
  let id = rest.join("/");
  try {
    id = decodeURIComponent(id);
  } catch {
    // As it stands.
  }
  return { name: name in PAGES ? name : "live", id, query: new URLSearchParams(query) };
}

function open({ focus = true } = {}) {
  leave();
  const { name, id, query } = route();
  document.title = `${TITLES[name]} · ${about?.agent_name || "voicebot"}`;
  for (const link of document.querySelectorAll("#pages a")) {
    const current = link.getAttribute("href") === `#/${name === "call" ? "calls" : name}`;
    if (current) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  content.replaceChildren();
  leave = PAGES[name](content, { id, query }) ?? (() => {});
  if (focus) {
    content.focus({ preventScroll: true });
    scrollTo(0, 0);
    announce(TITLES[name]);
  }
}

let stream = null;

function connect() {
  stream?.close();
  stream = new EventSource("api/live");
  stream.onmessage = (event) => {
    newest = { ...JSON.parse(event.data), heard: Date.now() };
    showState(newest.worker);
    showCount(newest.calls);
    for (const listener of [...listeners]) listener(newest);
  };
  stream.onerror = () => {
    setState("bad", "no connection to the worker");
    // The browser connects again by itself, except after an answer that is none.
    if (stream.readyState === EventSource.CLOSED) {
      stream = null;
      get("about").then(() => setTimeout(connect, 3000), (error) => error.status !== 401 && setTimeout(connect, 3000));
    }
  };
}

function setState(kind, text) {
  document.getElementById("state").className = `state ${kind}`;
  setText(document.getElementById("state-text"), text);
}

function showState(worker) {
  setText(document.getElementById("agent"), worker.agent_name || "voicebot");
  if (worker.draining) setState("odd", `draining, ${worker.active_jobs} calls left`);
  else if (worker.not_ready) setState("bad", "takes no calls");
  else if (worker.active_jobs >= worker.slots) setState("odd", "full");
  else setState("good", "takes calls");
}

function showCount(calls) {
  const count = document.getElementById("live-count");
  count.hidden = !calls?.length;
  setText(count, String(calls?.length ?? ""));
}

function signIn() {
  leave();
  leave = () => {};
  stream?.close();
  stream = null;
  setState("", "not signed in");
  document.title = "Sign in · voicebot";
  const problem = h("div");
  const input = h("input", { type: "password", id: "token", name: "token", autocomplete: "current-password", required: true });
  const form = h("form", { class: "card sign-in" },
    h("h1", {}, "Sign in"),
    h("p", {}, "The token is the worker's ", h("code", {}, "PAGE_TOKEN"), "."),
    h("label", { for: "token" }, "Token"), input, problem,
    h("button", { class: "main" }, "Sign in"));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    show(problem);
    try {
      await post("sign-in", { token: input.value });
      begin();
    } catch (error) {
      show(problem, notice(error.message));
      input.select();
    }
  });
  show(content, form);
  input.focus();
}

async function begin() {
  try {
    about = await get("about");
  } catch (error) {
    if (error.status !== 401) show(content, notice(error.message));
    return;
  }
  document.getElementById("sign-out").hidden = !about.signed_in;
  connect();
  open({ focus: false });
}

document.addEventListener("sign-in-needed", () => document.querySelector(".sign-in") ?? signIn());
document.getElementById("skip").addEventListener("click", () => content.focus());
document.getElementById("sign-out").addEventListener("click", async () => {
  await post("sign-out").catch(() => {});
  signIn();
});
addEventListener("hashchange", () => about && open());
begin();
