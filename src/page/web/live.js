// Calls that are going on.

import { h, notice, setText, show } from "./dom.js";
import { follow, settings } from "./main.js";
import * as words from "./words.js";

export function livePage(content) {
  const problem = h("div");
  const summary = h("p", { class: "lead" }, "Looking …");
  const list = h("ul", { class: "live-list" });
  show(content, h("h1", {}, "Live calls"), summary, problem, list);
  const cards = new Map();
  let ahead = 0;

  const stop = follow((event) => {
    // The clocks of this machine and the worker's may differ.
    ahead = new Date(event.now).getTime() - event.heard;
    show(problem, event.problem && notice(event.problem), event.worker.not_ready && notice(`The worker takes no calls: ${event.worker.not_ready}`));
    if (!event.calls) return;
    const { slots } = event.worker;
    const more = event.more ? `, ${event.more} more are not shown` : "";
    setText(summary, event.calls.length ? `${event.calls.length} of ${slots} places taken${more}.` : "Nobody is on the line. Calls appear here as they come in.");
    const seen = new Set();
    event.calls.forEach((call, place) => {
      seen.add(call.session_id);
      let card = cards.get(call.session_id);
      if (!card) cards.set(call.session_id, (card = liveCard(call.session_id)));
      card.update(call);
      if (list.children[place] !== card.element) list.insertBefore(card.element, list.children[place] ?? null);
    });
    for (const [id, card] of cards) {
      if (seen.has(id)) continue;
      card.element.remove();
      cards.delete(id);
    }
    tick();
  });
  const tick = () => {
    for (const card of cards.values()) card.tick(Date.now() + ahead);
  };
  const timer = setInterval(tick, 1000);
  return () => {
    stop();
    clearInterval(timer);
  };
}

function liveCard(id) {
  const name = h("a", { href: `#/call/${encodeURIComponent(id)}` });
  const stage = h("span", { class: "badge live" });
  const since = h("span", { class: "since" });
  const details = h("p", { class: "details" });
  const said = h("ol", { class: "said" });
  const element = h("li", { class: "card" },
    h("div", { class: "row" }, h("h2", {}, name), since), h("div", { class: "row" }, stage, details), said);
  let began = null;
  return {
    element,
    update(call) {
      began = call.answered ?? call.call_start;
      setText(name, words.party(call));
      setText(stage, words.stage(call.stage));
      stage.className = `badge ${call.stage === "interrupted" ? "bad" : call.stage === "talking" ? "live" : "odd"}`;
      const parts = [words.direction(call.direction), call.persona, call.latency_ms !== null && `answers in ${words.milliseconds(call.latency_ms)}`, `${call.said} said`];
      setText(details, parts.filter(Boolean).join(" · "));
      if (call.items) show(said, call.items.map((item) => h("li", { class: item.role }, h("b", {}, item.role === "user" ? "Caller " : "Agent "), item.content)));
      else show(said, settings().show_live_transcripts ? null : call.last_role && h("li", { class: "muted" }, `${call.last_role === "user" ? "The caller" : "The agent"} spoke last. Words are not shown while a call goes on.`));
    },
    tick(now) {
      setText(since, began ? words.length((now - new Date(began).getTime()) / 1000) : "");
    },
  };
}
