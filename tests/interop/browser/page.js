// The operator's page in headless Chromium: every page and action, by mouse and by keyboard, and what axe-core says of it.
// PAGE_PICTURES names a folder for pictures of each page, wide and narrow, light and dark.
// Prints one line for each check and closes with "N passed, N failed".

import assert from "node:assert/strict";
import { readFileSync, mkdirSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { join } from "node:path";
import * as support from "./support.js";

const DEADLINE_MS = 20_000;
const TOKEN = "the-token-of-these-checks";
const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const AGENT = "page-checks";
const NUMBER = "+15550100166";
const SESSION = "session_20261121_101500_00beef";
const MARKUP = '<img src=x onerror="window.wasRun = true"> and <b>bold</b>';

const scratch = support.scratchFolder();
const pictures = process.env.PAGE_PICTURES;

/** A CRM that refuses call data until it is told to take it. */
async function strictCrm() {
  const crm = { takes: false };
  const http = createServer(async (request, response) => {
    for await (const chunk of request) void chunk;
    const refuses = request.url === "/call-data" && !crm.takes;
    response.writeHead(refuses ? 422 : 200, { "content-type": "application/json" });
    response.end(JSON.stringify(refuses ? { error: "campaign is closed" } : { url: "http://crm.test/files/1" }));
  });
  await new Promise((done) => http.listen(0, "127.0.0.1", done));
  return Object.assign(crm, { url: `http://127.0.0.1:${http.address().port}`, stop: () => new Promise((done) => http.close(done)) });
}

/** Twelve seconds with a tone of the agent's on the left, then one of the caller's on the right. */
function sound() {
  const [rate, seconds] = [8000, 12];
  const wav = Buffer.alloc(44 + rate * seconds * 4);
  wav.write("RIFF", 0);
  wav.writeUInt32LE(wav.length - 8, 4);
  wav.write("WAVEfmt ", 8);
  wav.writeUInt32LE(16, 16);
  [1, 2].forEach((value, place) => wav.writeUInt16LE(value, 20 + 2 * place));
  wav.writeUInt32LE(rate, 24);
  wav.writeUInt32LE(rate * 4, 28);
  [4, 16].forEach((value, place) => wav.writeUInt16LE(value, 32 + 2 * place));
  wav.write("data", 36);
  wav.writeUInt32LE(wav.length - 44, 40);
  for (let n = 0; n < rate * seconds; n++) {
    const second = n / rate;
    const loud = (from, to) => (second >= from && second < to ? 0.3 + 0.6 * Math.abs(Math.sin(second * 5)) : 0.01);
    const wave = Math.sin(2 * Math.PI * 300 * second) * 20000;
    wav.writeInt16LE(Math.round(wave * Math.max(loud(0.2, 3), loud(7, 11))), 44 + 4 * n);
    wav.writeInt16LE(Math.round(wave * loud(3.5, 6)), 46 + 4 * n);
  }
  return wav;
}

const time = (second) => new Date(Date.UTC(2026, 10, 21, 10, 15, 0) + second * 1000).toISOString();

/** The files of one call, as a call process leaves them. */
function writeCalls() {
  for (const folder of ["call_metadata", "processed_metadata", "conversations", "leads", "recordings"]) mkdirSync(join(scratch.path, folder), { recursive: true });
  const write = (path, content) => writeFileSync(join(scratch.path, path), typeof content === "string" || Buffer.isBuffer(content) ? content : JSON.stringify(content));
  const said = (role, content, from, to, more = {}) => ({ role, content, timestamp: time(to), interrupted: false, source: "livekit-session", metrics: { started_speaking_at: time(from), stopped_speaking_at: time(to), ...more } });
  const turn = (number, at, steps) => ({ turn: number, answered_at: time(at), end_of_turn_ms: steps[0], first_token_ms: steps[1], first_byte_ms: steps[2], first_frame_ms: steps[3], interrupted: false, vendors: { llm: "openai/gpt" }, usage: {} });
  const record = (session, call_id, number, start, more) => ({
    schema_version: 2, session_id: session, dialed_number: number, caller_number: number, trunk_number: "+15550100100", direction: "inbound", call_id, job_id: `AJ_${call_id}`,
    room: { name: `call-${call_id}`, sid: "RM_1" }, persona: "Pump sales", campaign_metadata: {}, files: { recording: null, conversation: null, lead: null, leads: [] },
    timestamps: { call_start: start, joined: start, answered: start, call_end: new Date(new Date(start).getTime() + 95_000).toISOString(), metadata_saved: start },
    outcome: { close_reason: "participant_disconnected", disconnect_reason: "CLIENT_INITIATED", call_status: "completed" }, intents: [], usage: {}, status: "ready_for_upload", upload_attempts: 0,
    uploads: { recording: { state: "pending" }, call_data: { state: "pending" } }, ...more,
  });
  write("recordings/one.wav", sound());
  write(`conversations/conversation_${SESSION}.json`, {
    session_id: SESSION, start_time: time(0), end_time: time(12), duration_seconds: 12, total_items: 3, lead_generated: true, metadata: { auto_saved: true },
    conversation_items: [
      said("assistant", "Good morning, this is the pump shop. How can I help?", 0.2, 3),
      said("user", `I need a pump. ${MARKUP}`, 3.5, 6),
      said("assistant", "The small one costs ninety a month. Shall I send an offer?", 7, 11, { e2e_latency_ms: 1000 }),
    ],
    turns: [turn(1, 7, [420, 610, 780, 812]), turn(2, 20, [510, 900, 1180, 1240]), turn(3, 31, [300, 480, 640, 700])],
  });
  write("leads/lead_1.json", { lead_id: "0123456789abcdef0123456789abcdef", session_id: SESSION, name: "Asha Example", company: "Example Pumps", email: "asha@example.com", interest: MARKUP, phone: NUMBER, created_at: time(9) });
  write(`call_metadata/metadata_${SESSION}.json`, record(SESSION, "CALL-20261121-50100166", NUMBER, time(0), {
    files: { recording: "recordings/one.wav", conversation: `conversations/conversation_${SESSION}.json`, lead: "leads/lead_1.json", leads: ["leads/lead_1.json"] },
    recording: { source: "local", state: "resolved", recording_filename: "recordings/one.wav", recording_start_time: time(0) },
    usage: { llm_requests: 4, llm_prompt_tokens: 2113, llm_completion_tokens: 180, stt_audio_ms: 12000, tts_characters: 412, tts_audio_ms: 9000 },
  }));
  const outcomes = ["completed", "no_answer", "completed", "busy", "voicemail", "failed"];
  for (let n = 0; n < 70; n++) {
    const start = new Date(Date.UTC(2026, 10, 20, 16, 0) - n * 1_260_000).toISOString();
    const stamp = start.slice(0, 19).replace(/[-:]/g, "").replace("T", "_");
    const session = `session_${stamp}_${String(n).padStart(6, "0")}`;
    write(`processed_metadata/metadata_${session}.json`, record(session, `CALL-${stamp.slice(0, 8)}-5010${String(n).padStart(4, "0")}`, `+1555010${String(n).padStart(4, "0")}`, start, {
      status: "uploaded", direction: n % 3 ? "inbound" : "outbound", outcome: { call_status: outcomes[n % 6] },
      uploads: { recording: { state: "missing" }, call_data: { state: "sent", attempts: 1, response: { ok: true } } },
    }));
  }
}

writeCalls();
const server = await support.server(scratch.path);
const crm = await strictCrm();
const worker = await support.worker(scratch.path, server.url, crm.url, AGENT, { PAGE_TOKEN: TOKEN });
const site = `${worker.http}/page/`;
const chromium = await support.browser();

async function tab({ signedIn = true, ...options } = {}) {
  const context = await chromium.newContext({ locale: "en-GB", timezoneId: "UTC", ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(DEADLINE_MS);
  page.errors = [];
  page.on("pageerror", (error) => page.errors.push(String(error)));
  page.on("console", (message) => message.type() === "error" && /Content Security|Refused to/.test(message.text()) && page.errors.push(message.text()));
  if (signedIn) await context.request.post(`${site}api/sign-in`, { data: { token: TOKEN } });
  return page;
}

async function at(path, run, options) {
  const page = await tab(options);
  try {
    await page.goto(site + path);
    await run(page);
    assert.deepEqual(page.errors, [], "the page threw, or its policy was broken");
  } finally {
    await page.context().close();
  }
}

/** Rooms that the checks made. */
async function dispatch(room) {
  await support.serverCall(server.url, "AgentDispatchService", "CreateDispatch", { agentName: AGENT, room, metadata: JSON.stringify({ dialed_number: NUMBER }) }, { roomAdmin: true, room });
}

const checks = [];
const check = (name, run) => checks.push({ name, run });

check("signing in: a wrong token is refused, the right one opens the page, signing out closes it", () =>
  at("", async (page) => {
    await page.getByLabel("Token").fill("another-token-of-some-length");
    await page.getByRole("button", { name: "Sign in" }).click();
    await page.getByText("is not that of this worker").waitFor();
    await page.getByLabel("Token").fill(TOKEN);
    await page.keyboard.press("Enter");
    await page.getByRole("heading", { name: "Live calls" }).waitFor();
    assert.equal((await page.evaluate(() => document.cookie)).length, 0);
    await page.getByRole("button", { name: "Sign out" }).click();
    await page.getByLabel("Token").waitFor();
  }, { signedIn: false }),
);

check("a call appears while it goes on and is gone when its room is", () =>
  at("#/live", async (page) => {
    await page.getByText("Nobody is on the line").waitFor();
    await dispatch("page-live");
    const card = page.locator(".live-list .card");
    await card.getByText("Waiting for the caller").waitFor();
    await card.getByText("Words are not shown").waitFor({ state: "detached" });
    await page.locator("#live-count", { hasText: "1" }).waitFor();
    await support.serverCall(server.url, "RoomService", "DeleteRoom", { room: "page-live" }, { roomCreate: true });
    await page.getByText("Nobody is on the line").waitFor();
    assert.equal(await card.count(), 0);
  }),
);

check("finished calls: pages, a search by number, by id, by outcome and by day", () =>
  at("#/calls", async (page) => {
    const rows = page.locator(".calls tbody tr");
    await rows.nth(49).waitFor();
    assert.equal(await rows.count(), 50);
    await page.getByRole("button", { name: "Show more" }).click();
    await rows.nth(70).waitFor();
    const search = async (fill, expected) => {
      await page.goto(`${site}#/calls`);
      await page.reload();
      await rows.first().waitFor();
      await fill();
      await page.getByRole("button", { name: "Search" }).click();
      await page.locator(".lead", { hasText: expected }).waitFor();
    };
    const box = page.getByLabel("Number or id");
    await search(() => box.fill("0100042"), /^1 call\./);
    await search(() => box.fill("CALL-20261121-50100166"), /^1 call\./);
    await search(() => box.fill("nobody has this"), "No such call.");
    await search(() => page.getByLabel("Outcome").selectOption("busy"), /^\d+ calls\./);
    for (const badge of await page.locator(".calls td:nth-child(3)").allTextContents()) assert.equal(badge, "Busy");
    await search(() => page.getByLabel("From").fill("2026-11-21"), /^\d calls?\./);
    await search(() => page.getByLabel("Delivery").selectOption("archived"), /^50 calls\./);
    assert.doesNotMatch(await page.locator(".calls").innerText(), /5550100/, "numbers are hidden");
  }),
);

check("one call: what a caller says is text, the sound plays, the transcript follows and jumps", () =>
  at(`#/call/${SESSION}`, async (page) => {
    await page.locator(".wave canvas").waitFor();
    assert.match(await page.locator(".transcript").innerText(), /<img src=x/);
    assert.equal(await page.evaluate(() => window.wasRun), undefined);
    assert.equal(await page.locator(".transcript img, .facts img").count(), 0);
    const colours = await page.locator(".wave canvas").evaluate((canvas) => {
      const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
      const tall = (fromX, toX, fromY, toY) => {
        let count = 0;
        for (let y = fromY; y < toY; y++) for (let x = fromX; x < toX; x++) count += pixels[4 * (y * canvas.width + x) + 3] > 50;
        return count;
      };
      const [width, half] = [canvas.width / 12, canvas.height / 2];
      return { agentFirst: tall(width, 2 * width, 0, half), callerFirst: tall(width, 2 * width, half, 2 * half), callerThen: tall(4 * width, 5 * width, half, 2 * half) };
    });
    assert.ok(colours.agentFirst > 5 * colours.callerFirst, JSON.stringify(colours));
    assert.ok(colours.callerThen > 5 * colours.callerFirst, JSON.stringify(colours));
    await page.getByRole("button", { name: "Play from 0:07" }).press("Enter");
    await page.locator(".transcript li[aria-current]", { hasText: "ninety a month" }).waitFor();
    const playing = await page.locator("audio").evaluate((audio) => [audio.currentTime, audio.duration]);
    assert.ok(playing[0] >= 7 && Math.abs(playing[1] - 12) < 0.1, String(playing));
    await page.getByText("Median 812 ms, slowest 1.24 s").waitFor();
    assert.equal(await page.locator(".bars li").count(), 3);
    await page.getByText("Example Pumps", { exact: true }).waitFor();
    assert.doesNotMatch(await page.locator("main").innerText(), /5550100166/);
  }),
);

check("the queue says what waits and why, and a refused call is delivered when somebody asks for it", () =>
  at("#/queue", async (page) => {
    const entry = page.locator(".queue .card", { hasText: "CALL-20261121-50100166" });
    await entry.getByText("Refused", { exact: true }).waitFor();
    await entry.getByText("422").waitFor();
    crm.takes = true;
    await page.goto(`${site}#/call/${SESSION}`);
    await page.getByRole("button", { name: "Try again now" }).click();
    await page.locator("header.call").getByText("Delivered", { exact: true }).waitFor();
  }),
);

check("the worker's page tells places, server, CRM and disk", () =>
  at("#/worker", async (page) => {
    await page.getByText("Registered", { exact: true }).waitFor();
    await page.getByText("takes requests").first().waitFor();
    assert.match(await page.locator("main").innerText(), /0 of \d+[\s\S]*Free\s+\d/);
  }),
);

check("by keyboard alone: skip link, pages, a call", () =>
  at("#/live", async (page) => {
    await page.getByRole("heading", { name: "Live calls" }).waitFor();
    await page.evaluate(() => document.activeElement.blur());
    await page.keyboard.press("Tab");
    assert.equal(await page.evaluate(() => document.activeElement.id), "skip");
    await page.keyboard.press("Enter");
    assert.equal(await page.evaluate(() => document.activeElement.id), "content");
    await page.getByRole("link", { name: "Calls", exact: true }).focus();
    await page.keyboard.press("Enter");
    await page.locator(".calls tbody tr a").first().focus();
    await page.keyboard.press("Enter");
    await page.getByRole("heading", { name: "Timeline" }).waitFor();
    assert.equal(await page.evaluate(() => document.activeElement.id), "content");
  }),
);

for (const colorScheme of ["light", "dark"]) {
  for (const [width, viewport] of [["wide", { width: 1280, height: 900 }], ["narrow", { width: 375, height: 812 }]]) {
    check(`axe has no serious finding, and nothing sticks out: ${width}, ${colorScheme}`, async () => {
      const pages = { live: ".lead", calls: ".calls tbody tr", [`call/${SESSION}`]: ".wave canvas", queue: ".lead", worker: ".cards .card" };
      for (const [path, ready] of Object.entries(pages)) {
        await at(`#/${path}`, async (page) => {
          await page.locator(ready).first().waitFor();
          await page.getByText("Looking …").waitFor({ state: "detached" });
          const name = path.split("/")[0];
          if (pictures) await page.screenshot({ path: join(pictures, `${name}-${width}-${colorScheme}.png`), fullPage: true });
          // Like a developer's console, not like a script of the page: its policy stays as it is.
          await page.evaluate(AXE);
          const { violations } = await page.evaluate(() => window.axe.run({ resultTypes: ["violations"] }));
          const serious = violations.filter(({ impact }) => ["serious", "critical"].includes(impact));
          const found = serious.map(({ id, nodes }) => `${id}: ${nodes.slice(0, 3).map((node) => `${node.html.slice(0, 120)} (${node.failureSummary})`).join(" | ")}`);
          assert.deepEqual(found, [], `${name}: axe`);
          const wider = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
          assert.ok(wider <= 0, `${name} is ${wider} px wider than the screen`);
        }, { viewport, colorScheme });
      }
    });
  }
}

try {
  process.exitCode = await support.runChecks(checks, process.argv[2]);
} finally {
  await chromium.close();
  await worker.stop();
  await crm.stop();
  await server.stop();
  scratch.remove();
}
