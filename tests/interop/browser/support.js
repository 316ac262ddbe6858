// What the checks stand on: processes of ours, tokens, server calls, the page's web server and the browser.

import { spawn } from "node:child_process";
import { createHmac } from "node:crypto";
import { accessSync, constants, createReadStream, createWriteStream, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";

const HERE = dirname(fileURLToPath(import.meta.url));
export const REPOSITORY = resolve(HERE, "../../..");
const START_DEADLINE_MS = 20_000;
const STOP_DEADLINE_MS = 20_000;

export const key = process.env.LIVEKIT_API_KEY ?? "devkey";
export const secret = process.env.LIVEKIT_API_SECRET ?? "secret";

export function voicebotBinary() {
  const path = process.env.VOICEBOT_BIN ?? join(REPOSITORY, "target/debug/voicebot");
  try {
    accessSync(path, constants.X_OK);
  } catch {
    throw new Error(`${path} is not there: build it with \`cargo build\`, or name it in VOICEBOT_BIN`);
  }
  return path;
}

/** A child in a process group of its own; `firstLine` is what it printed first, `stop` leaves nothing of it behind. */
export function start(command, args, { env = {}, cwd, log }) {
  const out = createWriteStream(log);
  const child = spawn(command, args, { cwd, env: { ...process.env, ...env }, detached: true, stdio: ["ignore", "pipe", "pipe"] });
  child.stderr.pipe(out);
  const ended = new Promise((done) => child.once("exit", done).once("error", done));
  const lines = createInterface({ input: child.stdout });
  const firstLine = new Promise((done, fail) => {
    lines.once("line", done);
    ended.then((code) => fail(new Error(`${command} ended (${code}) before it was ready; its log is ${log}`)));
    setTimeout(() => fail(new Error(`${command} printed nothing in ${START_DEADLINE_MS} ms`)), START_DEADLINE_MS).unref();
  });
  firstLine.catch(() => {});
  lines.on("line", (line) => out.write(line + "\n"));
  const stop = async () => {
    child.kill("SIGTERM");
    await Promise.race([ended, new Promise((done) => setTimeout(done, STOP_DEADLINE_MS).unref())]);
    try {
      process.kill(-child.pid, "SIGKILL");
    } catch {
      // Everything in the group is gone already.
    }
  };
  return { firstLine, stop, child };
}

/** The server under test: LIVEKIT_URL if it is set, else the room server of our binary. */
export async function server(scratch) {
  if (process.env.LIVEKIT_URL) return { url: process.env.LIVEKIT_URL, stop: async () => {} };
  const process_ = start(voicebotBinary(), ["roomserver", "--bind", "127.0.0.1:0"], {
    env: { LIVEKIT_API_KEY: key, LIVEKIT_API_SECRET: secret },
    log: join(scratch, "roomserver.log"),
  });
  return { url: JSON.parse(await process_.firstLine).url, stop: process_.stop };
}

const base64url = (value) => Buffer.from(typeof value === "string" ? value : JSON.stringify(value)).toString("base64url");

/** An access token as docs.livekit.io describes it: HS256 over the claims, grants under `video`. */
export function token(identity, video, more = {}) {
  const now = Math.floor(Date.now() / 1000);
  const claims = { iss: key, sub: identity, nbf: now - 5, exp: now + 600, video, ...more };
  const body = `${base64url({ alg: "HS256", typ: "JWT" })}.${base64url(claims)}`;
  return `${body}.${createHmac("sha256", secret).update(body).digest("base64url")}`;
}

export async function serverCall(url, service, method, body, grants) {
  const response = await fetch(`${url.replace(/^ws/, "http")}/twirp/livekit.${service}/${method}`, {
    method: "POST",
    headers: { "content-type": "application/json", authorization: `Bearer ${token("judge", grants)}` },
    body: JSON.stringify(body),
  });
  if (!response.ok) throw new Error(`${service}/${method}: HTTP ${response.status} ${await response.text()}`);
  return response.json();
}

/**
 * A copy of a WAV file with two seconds of silence before it, for the time until the track is published, and a minute
 * behind it, for listening. Gives the copy's path.
 */
export function amidSilence(path, folder) {
  const wav = readFileSync(path);
  const bytesPerSecond = wav.readUInt32LE(wav.indexOf("fmt ") + 16);
  const data = wav.indexOf("data") + 8;
  const sound = wav.subarray(data, data + wav.readUInt32LE(data - 4));
  const [before, behind] = [Buffer.alloc(2 * bytesPerSecond), Buffer.alloc(60 * bytesPerSecond)];
  const longer = Buffer.concat([wav.subarray(0, data), before, sound, behind]);
  longer.writeUInt32LE(longer.length - 8, 4);
  longer.writeUInt32LE(longer.length - data, data - 4);
  const copy = join(folder, "amid-silence.wav");
  writeFileSync(copy, longer);
  return copy;
}

/** A CRM that keeps what it is sent. */
export async function crm() {
  const kept = { calls: [], recordings: 0 };
  const http = createServer(async (request, response) => {
    const chunks = [];
    for await (const chunk of request) chunks.push(chunk);
    if (request.url === "/call-data") kept.calls.push(JSON.parse(Buffer.concat(chunks)));
    if (request.url === "/upload") kept.recordings += 1;
    response.writeHead(200, { "content-type": "application/json" });
    response.end(JSON.stringify({ url: `http://crm.test/files/${kept.recordings}` }));
  });
  await new Promise((done) => http.listen(0, "127.0.0.1", done));
  return { kept, url: `http://127.0.0.1:${http.address().port}`, stop: () => new Promise((done) => http.close(done)) };
}

async function freePort() {
  const probe = createServer();
  await new Promise((done) => probe.listen(0, "127.0.0.1", done));
  const { port } = probe.address();
  await new Promise((done) => probe.close(done));
  return port;
}

/** `voicebot start` with the prepared conversation, registered and ready for calls; `http` is the address of its page. */
export async function worker(scratch, serverUrl, crmUrl, agentName, env = {}) {
  const bind = `127.0.0.1:${await freePort()}`;
  const log = join(scratch, "worker.log");
  const process_ = start(voicebotBinary(), ["start"], {
    cwd: scratch,
    log,
    env: {
      LIVEKIT_URL: serverUrl,
      LIVEKIT_API_KEY: key,
      LIVEKIT_API_SECRET: secret,
      LIVEKIT_AGENT_NAME: agentName,
      CRM_BASE_URL: crmUrl,
      VOICEBOT__DATA_DIR: scratch,
      VOICEBOT__PERSONA__DIRECTORY: join(REPOSITORY, "config/personas"),
      VOICEBOT__PROVIDERS__VENDOR: "scripted",
      VOICEBOT__PROVIDERS__SCRIPT: join(REPOSITORY, "config/demo-script.json"),
      VOICEBOT__RECORDING__MODE: "local",
      VOICEBOT__WORKER__HTTP_BIND: bind,
      ...env,
    },
  });
  const end = Date.now() + START_DEADLINE_MS;
  while (!(await fetch(`http://${bind}/readyz`).then((answer) => answer.ok, () => false))) {
    if (Date.now() > end || process_.child.exitCode !== null) {
      await process_.stop();
      throw new Error(`the worker did not register: ${tail(log)}`);
    }
    await new Promise((done) => setTimeout(done, 50));
  }
  return { ...process_, http: `http://${bind}` };
}

/** Serves the page, our script and the official client's bundle to the browser. */
export async function pages() {
  const files = {
    "/": ["page.html", "text/html"],
    "/participant.js": ["participant.js", "text/javascript"],
    "/livekit-client.js": ["node_modules/livekit-client/dist/livekit-client.umd.js", "text/javascript"],
  };
  const web = createServer((request, response) => {
    const [file, type] = files[new URL(request.url, "http://page").pathname] ?? [];
    if (!file) return response.writeHead(404).end();
    response.writeHead(200, { "content-type": type });
    createReadStream(join(HERE, file)).pipe(response);
  });
  await new Promise((done) => web.listen(0, "127.0.0.1", done));
  return { url: `http://127.0.0.1:${web.address().port}/`, stop: () => new Promise((done) => web.close(done)) };
}

/**
 * Debian's Chromium without a window and silent towards the outside. Its made-up microphone beeps, or plays a WAV file
 * over and over from the moment it is opened.
 */
export function browser({ microphone } = {}) {
  return chromium.launch({
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    args: [
      "--no-sandbox",
      "--disable-gpu",
      "--disable-quic",
      "--no-first-run",
      "--disable-background-networking",
      "--disable-component-update",
      "--disable-sync",
      "--autoplay-policy=no-user-gesture-required",
      "--use-fake-ui-for-media-stream",
      "--use-fake-device-for-media-stream",
      ...(microphone ? [`--use-file-for-fake-audio-capture=${microphone}`] : []),
    ],
  });
}

export function scratchFolder() {
  const path = mkdtempSync(join(tmpdir(), "voicebot-interop-"));
  return { path, remove: () => rmSync(path, { recursive: true, force: true }) };
}

export const tail = (path) => {
  try {
    return readFileSync(path, "utf8").slice(-3000);
  } catch {
    return "";
  }
};

/// Runs those of `checks` whose names contain `only`, and says how each went. Answers the exit status.
export async function runChecks(checks, only = "") {
  let passed = 0;
  let failed = 0;
  for (const { name, run } of checks) {
    if (!name.includes(only)) continue;
    const started = Date.now();
    try {
      await run();
      passed += 1;
      console.log(`ok     ${name} (${Date.now() - started} ms)`);
    } catch (error) {
      failed += 1;
      console.log(`FAILED ${name} (${Date.now() - started} ms): ${error.message}`);
    }
  }
  console.log(`${passed} passed, ${failed} failed`);
  return failed || passed === 0 ? 1 : 0;
}
