// One call: sound, transcript, latency, leads, usage, delivery, timeline.

import { badge, facts, h, notice, show } from "./dom.js";
import { get, post } from "./server.js";
import { soundOf } from "./sound.js";
import * as words from "./words.js";

const LIVE = ["running", "interrupted"];
const AGAIN_MS = 2000;

export function callPage(content, { id }) {
  const stop = new AbortController();
  const place = h("div", {}, h("p", { class: "lead" }, "Looking …"));
  show(content, h("p", { class: "back" }, h("a", { href: "#/calls" }, "‹ All calls")), place);
  let sound = null;
  let timer = null;
  let before = "";
  async function load() {
    try {
      const view = await get(`calls/${encodeURIComponent(id)}`, stop.signal);
      const now = JSON.stringify(view);
      if (now !== before) {
        before = now;
        sound?.stop();
        sound = render(place, view, stop.signal, load);
      }
      if (LIVE.includes(view.call.status)) timer = setTimeout(load, AGAIN_MS);
    } catch (error) {
      if (error.name !== "AbortError") show(place, notice(error.message));
    }
  }
  load();
  return () => {
    stop.abort();
    clearTimeout(timer);
    sound?.stop();
  };
}

function render(place, view, signal, reload) {
  const { call } = view;
  const isLive = LIVE.includes(call.status);
  const items = transcriptItems(view);
  const list = transcript(items, view);
  const sound = isLive || !view.recording.expected ? null : soundOf(call.session_id, { items: list.items, deleted: view.recording.deleted, signal });
  show(place,
    h("header", { class: "call" },
      h("h1", {}, words.party(call)),
      h("p", { class: "row" },
        badge(words.standing(call.status), words.standingKind(call.status)),
        call.outcome && badge(words.outcome(call.outcome), words.outcomeKind(call.outcome)),
        h("span", {}, [words.direction(call.direction), words.when(call.call_start), words.length(call.duration_s)].filter(Boolean).join(" · "))),
      view.problems.map((text) => notice(text, "hint"))),
    h("div", { class: "columns" },
      h("div", {},
        sound?.element ?? (!isLive && h("section", { class: "card" }, h("h2", {}, "Recording"), h("p", { class: "muted" }, "The call was not recorded."))),
        h("section", { class: "card" }, h("h2", {}, "What was said"), list.element)),
      h("div", {},
        delivery(view, reload),
        latency(view, items),
        leads(view),
        usage(view),
        h("section", { class: "card" }, h("h2", {}, "Ids"), facts(
          ["Session", call.session_id], ["Call", call.call_id], ["Job", call.job_id], ["Room", call.room], ["Persona", call.persona], ["File", call.file])))),
    h("section", { class: "card" }, h("h2", {}, "Timeline"), timeline(view)));
  return sound ?? { stop() {} };
}

/** What was said, with the second of the recording at which it begins. */
function transcriptItems(view) {
  const began = view.recording.began_at ? new Date(view.recording.began_at).getTime() : null;
  return (view.items ?? []).map((item) => {
    const at = item.metrics?.started_speaking_at ?? item.timestamp;
    const second = began !== null && at ? Math.max(0, (new Date(at).getTime() - began) / 1000) : null;
    const content = Array.isArray(item.content) ? item.content.filter((part) => typeof part === "string").join("\n") : String(item.content ?? "");
    return { ...item, content, at, second, isAgent: ["assistant", "agent"].includes(item.role) };
  });
}

function transcript(items, view) {
  if (view.hides_words) return { items: [], element: h("p", { class: "muted" }, "Words are not shown while a call goes on (page.show_live_transcripts).") };
  if (!items.length) return { items: [], element: h("p", { class: "muted" }, "Nothing was said.") };
  const withElements = items.map((item) => {
    const time = item.second === null ? h("span", { class: "time" }, words.timeOfDay(item.at)) : h("button", { type: "button", class: "time", "aria-label": `Play from ${words.length(item.second)}` }, words.length(item.second));
    const element = h("li", { class: item.isAgent ? "assistant" : "user" },
      h("p", { class: "who" }, h("b", {}, item.isAgent ? "Agent" : "Caller"), time, item.interrupted && badge("cut off", "odd")),
      h("p", { class: "words" }, item.content));
    return { ...item, element, time };
  });
  return { items: withElements, element: h("ol", { class: "transcript" }, withElements.map((item) => item.element)) };
}

const STAGES = [["end_of_turn", "End of turn"], ["model", "Model"], ["voice", "Voice"], ["playout", "Playout"], ["all", "Answer"]];

/** What each answer took, by stage: from the turns of the record, or from what each item has. */
function answers(view, items) {
  const turns = (view.turns ?? []).filter((turn) => turn?.first_frame_ms);
  if (turns.length) {
    return turns.map((turn) => {
      const steps = [turn.end_of_turn_ms, turn.first_token_ms, turn.first_byte_ms, turn.first_frame_ms];
      let before = 0;
      const parts = steps.map((step, place) => {
        const until = Math.max(before, step ?? before);
        const part = [STAGES[place][0], until - before];
        before = until;
        return part;
      });
      return { name: turn.turn, all: turn.first_frame_ms, parts, vendors: Object.values(turn.vendors ?? {}).filter(Boolean).join(", ") };
    });
  }
  return items.filter((item) => item.metrics?.e2e_latency_ms).map((item, place) => ({ name: place + 1, all: item.metrics.e2e_latency_ms, parts: [["all", item.metrics.e2e_latency_ms]] }));
}

function latency(view, items) {
  const all = answers(view, items);
  if (!all.length) return null;
  const longest = Math.max(...all.map((answer) => answer.all));
  const sorted = all.map((answer) => answer.all).sort((a, b) => a - b);
  const stages = STAGES.filter(([name]) => all.some((answer) => answer.parts.some(([part, ms]) => part === name && ms > 0)));
  const bar = (answer) => {
    const line = h("div", { class: "bar-line", "aria-hidden": "true" }, answer.parts.filter(([, ms]) => ms > 0).map(([name, ms]) => {
      const piece = h("span", { class: `stage-${name}` });
      piece.style.width = `${(100 * ms) / longest}%`;
      return piece;
    }));
    const told = answer.parts.filter(([name, ms]) => ms > 0 && name !== "all").map(([name, ms]) => `${STAGES.find(([known]) => known === name)[1]} ${words.milliseconds(ms)}`).join(", ");
    return h("li", { title: [told, answer.vendors].filter(Boolean).join("; ") }, h("span", { class: "name" }, answer.name), line, h("span", { class: "ms" }, words.milliseconds(answer.all)), told && h("span", { class: "for-readers" }, told));
  };
  return h("section", { class: "card" }, h("h2", {}, "How fast the agent answered"),
    h("p", { class: "muted" }, `Median ${words.milliseconds(sorted[Math.floor((sorted.length - 1) / 2)])}, slowest ${words.milliseconds(longest)}.`),
    stages.length > 1 && h("ul", { class: "legend" }, stages.map(([name, text]) => h("li", {}, h("span", { class: `swatch stage-${name}`, "aria-hidden": "true" }), text))),
    h("ol", { class: "bars" }, all.map(bar)));
}

function leads(view) {
  if (!view.leads.length) return null;
  const names = { name: "Name", company: "Company", email: "E-mail", phone: "Phone", interest: "Interest", job_title: "Job", budget: "Budget", timeline: "When" };
  return h("section", { class: "card" }, h("h2", {}, view.leads.length > 1 ? "Leads" : "Lead"),
    view.leads.map(({ lead }) => facts(...Object.entries(names).map(([field, label]) => [label, typeof lead?.[field] === "string" ? lead[field] : null]))));
}

function usage(view) {
  const used = view.usage ?? {};
  const number = (value) => (value ? Number(value).toLocaleString() : null);
  const seconds = (ms) => (ms ? `${Math.round(ms / 1000)} s` : null);
  const pairs = [
    ["Model requests", number(used.llm_requests)], ["Tokens in", number(used.llm_prompt_tokens)], ["of them cached", number(used.llm_prompt_cached_tokens)],
    ["Tokens out", number(used.llm_completion_tokens)], ["Recognised", seconds(used.stt_audio_ms)], ["Spoken", seconds(used.tts_audio_ms)], ["Characters", number(used.tts_characters)],
    ["Retries", number((used.stt_retries ?? 0) + (used.llm_retries ?? 0) + (used.tts_retries ?? 0))], ["Fallbacks", number((used.stt_fallbacks ?? 0) + (used.llm_fallbacks ?? 0) + (used.tts_fallbacks ?? 0))],
  ].filter(([, value]) => value);
  return pairs.length ? h("section", { class: "card" }, h("h2", {}, "Usage"), facts(...pairs)) : null;
}

export function retryButton(id, done, text = "Try again now") {
  const said = h("span", { role: "status" });
  const button = h("button", { type: "button" }, text);
  button.addEventListener("click", async () => {
    button.disabled = true;
    try {
      const answer = await post(`calls/${encodeURIComponent(id)}/retry`);
      show(said, answer.tried_again ? "It is due now." : "There is nothing to try again.");
      setTimeout(done, 1500);
    } catch (error) {
      show(said, error.message);
      button.disabled = false;
    }
  });
  return h("div", { class: "row" }, button, said);
}

function delivery(view, reload) {
  const { call, uploads } = view;
  if (LIVE.includes(call.status)) return null;
  const parts = [["recording", uploads?.recording], ["call_data", uploads?.call_data], ["call_data_update", uploads?.call_data_update]].filter(([, part]) => part);
  return h("section", { class: "card" }, h("h2", {}, "Delivery to the CRM"),
    parts.map(([name, part]) => h("div", { class: "part" },
      h("h3", {}, words.part(name), " ", badge(words.partState(part.state), words.partKind(part.state))),
      part.last_error && part.state !== "sent" && h("p", { class: "error" }, part.last_error),
      part.next_attempt && !["sent", "failed"].includes(part.state) && h("p", { class: "muted" }, `Next attempt ${words.when(part.next_attempt)}.`),
      part.history?.length > 0 && h("ol", { class: "attempts" }, part.history.map((attempt) => h("li", {},
        h("span", { class: "time" }, words.timeOfDay(attempt.at)), ` ${words.attempt(attempt.outcome)}, ${words.milliseconds(attempt.took_ms)}`, attempt.error && `: ${attempt.error}`))),
      part.response !== null && part.response !== undefined && h("details", {}, h("summary", {}, "Answer of the CRM"), h("pre", { tabindex: "0" }, JSON.stringify(part.response, null, 2))))),
    ["failed", "waiting"].includes(call.status) && retryButton(call.session_id, reload));
}

function timeline(view) {
  return h("ol", { class: "timeline" }, view.timeline.map((entry) => {
    const [title, text, kind] = words.happened(entry);
    return h("li", { class: kind }, h("span", { class: "time" }, words.timeOfDay(entry.at)), h("div", {}, h("b", {}, title), text && h("span", { class: "what" }, " ", text)));
  }));
}
