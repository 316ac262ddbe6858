// One call from the browser, with the official LiveKit client. Shows who speaks, what is said, and how long answers take.
"use strict";

const $ = (id) => document.getElementById(id);
const STATES = ["listening", "thinking", "speaking"];
// What counts as sound, of a full level of 1, and how long a pause ends it, ms.
const LOUD = 0.03;
const PAUSE_MS = 300;
const segments = new Map();
let room = null;
let yourLast = 0;
let agentLast = 0;
let written = 0;

function problem(text) {
  $("problem").textContent = text;
}

async function about() {
  const about = await (await fetch("about")).json();
  $("about").textContent = `${about.url}, agent “${about.agent_name}”` +
    (about.scripted ? "; no provider keys are set, so a prepared conversation answers whatever you say" : "");
  if (about.client_missing) {
    $("call").disabled = true;
    problem("The browser's LiveKit client is not installed. Once, in the folder of the project:\n" +
      "  npm ci --prefix tests/interop/browser\n" +
      `(expected: ${about.client_missing}; another place: voicebot dev --client FILE)`);
  }
}

function showState(state) {
  $("state").textContent = state;
  $("light").className = STATES.includes(state) ? state : "";
}

function showWords(id, who, text, final) {
  let item = segments.get(id);
  if (!item) {
    item = document.createElement("li");
    item.dataset.who = who;
    $("words").append(item);
    segments.set(id, item);
  }
  item.textContent = text;
  item.classList.toggle("interim", !final);
}

// Agent: one stream a segment, growing. Caller: a new stream for each state of a segment.
async function readWords(reader, participant) {
  const attributes = reader.info.attributes || {};
  const id = attributes["lk.segment_id"] || reader.info.id;
  const mine = participant.identity === room.localParticipant.identity;
  let text = "";
  for await (const chunk of reader) {
    text += chunk;
    showWords(id, mine ? "You" : "Agent", text, attributes["lk.transcription_final"] === "true");
  }
  showWords(id, mine ? "You" : "Agent", text, true);
}

// Looks at both levels, and shows how long the agent took from your last sound to its first.
function meters() {
  if (!room) return;
  const now = performance.now();
  const agent = [...room.remoteParticipants.values()][0];
  const levels = [room.localParticipant.audioLevel, agent ? agent.audioLevel : 0];
  [$("you").value, $("agent").value] = levels;
  if (levels[0] > LOUD) yourLast = now;
  if (levels[1] > LOUD) {
    if (now - agentLast > PAUSE_MS && yourLast > agentLast) {
      $("times").textContent = `answered about ${Math.round(now - yourLast)} ms after your last sound`;
    }
    agentLast = now;
  }
  requestAnimationFrame(meters);
}

async function start() {
  problem("");
  segments.clear();
  $("words").replaceChildren();
  showState("calling");
  const begin = performance.now();
  const answer = await fetch("call", { method: "POST" });
  if (!answer.ok) throw new Error(await answer.text());
  const { url, token } = await answer.json();
  const client = window.LivekitClient;
  room = new client.Room();
  room.registerTextStreamHandler("lk.transcription", (reader, participant) => {
    const sender = participant.identity === room.localParticipant.identity ? room.localParticipant : participant;
    readWords(reader, sender).catch((error) => problem(String(error)));
  });
  room.on(client.RoomEvent.TrackSubscribed, (track) => {
    if (track.kind === client.Track.Kind.Audio) {
      document.body.append(track.attach());
      $("times").textContent = `agent here after ${Math.round(performance.now() - begin)} ms`;
    }
  });
  room.on(client.RoomEvent.ParticipantAttributesChanged, (changed, participant) => {
    if (changed["lk.agent.state"] && !participant.isLocal) showState(changed["lk.agent.state"]);
  });
  room.on(client.RoomEvent.Disconnected, ended);
  await room.connect(url, token);
  await room.localParticipant.setMicrophoneEnabled(true);
  $("call").textContent = "Hang up";
  $("call").classList.add("live");
  for (const element of document.querySelectorAll("#mute, #chat input, #chat button")) element.disabled = false;
  meters();
}

function ended() {
  room = null;
  showState("not in a call");
  $("call").textContent = "Call";
  $("call").classList.remove("live");
  $("mute").textContent = "Mute";
  for (const element of document.querySelectorAll("#mute, #chat input, #chat button")) element.disabled = true;
  for (const element of document.querySelectorAll("audio")) element.remove();
}

$("call").addEventListener("click", async () => {
  $("call").disabled = true;
  try {
    if (room) await room.disconnect();
    else await start();
  } catch (error) {
    problem(String(error.message || error));
    if (room) await room.disconnect();
    ended();
  }
  $("call").disabled = false;
});

$("mute").addEventListener("click", async () => {
  const muted = $("mute").textContent === "Mute";
  await room.localParticipant.setMicrophoneEnabled(!muted);
  $("mute").textContent = muted ? "Unmute" : "Mute";
});

$("chat").addEventListener("submit", async (event) => {
  event.preventDefault();
  const text = $("text").value.trim();
  if (!text || !room) return;
  $("text").value = "";
  written += 1;
  showWords(`written-${written}`, "You", text, true);
  await room.localParticipant.sendText(text, { topic: "lk.chat" });
});

about().catch((error) => problem(String(error)));
