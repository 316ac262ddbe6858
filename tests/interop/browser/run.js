// The official livekit-client in headless Chromium against a server, and against the worker behind it.
// LIVEKIT_URL names a server that already runs; without it our own room server is started.
// Prints one line for each check and closes with "N passed, N failed".

import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { join } from "node:path";
import * as support from "./support.js";

const DEADLINE_MS = 15_000;
const RECONNECT_DEADLINE_MS = 30_000;
const CONVERSATION_DEADLINE_MS = 30_000;

const scratch = support.scratchFolder();
const server = await support.server(scratch.path);
const web = await support.pages();
const chromium = await support.browser();

/** One browser tab as a participant; `call` runs a method of participant.js in it. */
class Tab {
  static async open(identity, room, browser = chromium) {
    const tab = new Tab();
    Object.assign(tab, { identity, room, page: await browser.newPage() });
    tab.errors = [];
    tab.page.on("pageerror", (error) => tab.errors.push(String(error)));
    await tab.page.goto(web.url);
    return tab;
  }

  call(method, ...args) {
    return this.page.evaluate(([method, args]) => window.participant[method](...args), [method, args]);
  }

  inPage(script, argument) {
    return this.page.evaluate(script, argument);
  }

  join(grants = {}, options = {}) {
    const video = { roomJoin: true, room: this.room, canUpdateOwnMetadata: true, ...grants };
    return this.call("join", server.url, support.token(this.identity, video, { name: `${this.identity} N.` }), options);
  }

  /** What the transcription streams said, for messages. */
  async words() {
    const texts = await this.inPage(() => window.participant.texts.map((t) => `${t.from}: ${t.text}`));
    return texts.join(" | ");
  }

  /** Waits until a script in the page gives something truthy; that is the result. */
  async until(what, script, argument, timeout = DEADLINE_MS) {
    try {
      const handle = await this.page.waitForFunction(script, argument, { timeout, polling: 50 });
      return await handle.jsonValue();
    } catch (error) {
      const seen = await this.inPage(() => window.participant.log.map((e) => e.name).slice(-30));
      throw new Error(`${this.identity} waited ${timeout} ms for ${what}; last events: ${seen.join(" ")}; words: ${await this.words()} (${error.name})`);
    }
  }

  sees(identity) {
    return this.until(`${identity} in the room`, (who) => window.participant.remote(who), identity);
  }

  event(name, first, timeout = DEADLINE_MS) {
    const find = ([name, first]) => window.participant.log.find((e) => e.name === name && (first === null || e.args[0] === first));
    return this.until(`${name} ${first ?? ""}`, find, [name, first ?? null], timeout);
  }

  hears(identity, minimumLevel) {
    const test = ([who, level]) => {
      const sound = window.participant.hear(who);
      return sound && sound.level > level && sound;
    };
    return this.until(`the sound of ${identity}`, test, [identity, minimumLevel]);
  }

  hearsTone(identity, frequencyHz) {
    const test = ([who, hz]) => {
      const sound = window.participant.hear(who);
      return sound && sound.level > 0.02 && Math.abs(sound.frequencyHz - hz) < 12 && sound;
    };
    return this.until(`${frequencyHz} Hz from ${identity}`, test, [identity, frequencyHz]);
  }
}

const checks = [];
const check = (name, run) => checks.push({ name, run });

/** Two tabs in a room of their own, closed again whatever happens. */
async function pair(run, { auto = true } = {}) {
  const room = `browser-${randomBytes(6).toString("hex")}`;
  const tabs = [await Tab.open("alice", room), await Tab.open("bob", room)];
  try {
    for (const tab of tabs) await tab.join({}, { autoSubscribe: auto });
    const [alice, bob] = tabs;
    await alice.sees("bob");
    await bob.sees("alice");
    await run(alice, bob, room);
    for (const tab of tabs) assert.deepEqual(tab.errors, [], `${tab.identity}'s page threw`);
  } finally {
    for (const tab of tabs) {
      await tab.inPage(() => window.participant.room.disconnect()).catch(() => {});
      await tab.page.close();
    }
  }
}

check("two browsers meet, by name", () =>
  pair(async (alice, bob) => {
    assert.equal((await bob.sees("alice")).name, "alice N.");
    assert.equal((await alice.sees("bob")).name, "bob N.");
  }),
);

check("each hears the other: a microphone and a tone", () =>
  pair(async (alice, bob) => {
    await alice.call("openMicrophone");
    await bob.call("hum", 1000);
    await alice.hearsTone("bob", 1000);
    await bob.hears("alice", 0.01);
  }),
);

check("a tone keeps coming without a hole for five seconds", () =>
  pair(async (alice, bob) => {
    await alice.call("hum", 440);
    await bob.hearsTone("alice", 440);
    const lowest = await bob.inPage(async () => {
      let lowest = 1;
      const end = performance.now() + 5000;
      while (performance.now() < end) {
        await new Promise((done) => setTimeout(done, 100));
        lowest = Math.min(lowest, window.participant.hear("alice").level);
      }
      return lowest;
    });
    assert.ok(lowest > 0.1, `the level fell to ${lowest.toFixed(3)}`);
  }),
);

check("who joins late hears what was already there", () =>
  pair(async (alice, bob, room) => {
    await alice.call("hum", 440);
    const carol = await Tab.open("carol", room);
    try {
      await carol.join();
      await carol.hearsTone("alice", 440);
      assert.deepEqual((await carol.call("remotes")).sort(), ["alice", "bob"]);
    } finally {
      await carol.page.close();
    }
  }),
);

check("muting is announced and silences, unmuting brings it back", () =>
  pair(async (alice, bob) => {
    await alice.call("hum", 440);
    await bob.hearsTone("alice", 440);
    await alice.inPage(() => [...window.participant.room.localParticipant.audioTrackPublications.values()][0].mute());
    await bob.event("trackMuted");
    await bob.until("silence", () => window.participant.hear("alice").level < 0.001);
    await alice.inPage(() => [...window.participant.room.localParticipant.audioTrackPublications.values()][0].unmute());
    await bob.event("trackUnmuted");
    await bob.hearsTone("alice", 440);
  }),
);

for (const reliable of [true, false]) {
  check(`${reliable ? "reliable" : "lossy"} data in both directions`, () =>
    pair(async (alice, bob) => {
      for (const [sender, receiver] of [[alice, bob], [bob, alice]]) {
        const text = `from ${sender.identity}`;
        // A lossy packet may get lost while the channel opens, so it is said more than once.
        for (let i = 0; i < (reliable ? 1 : 10); i++) {
          await sender.call("sendData", text, { reliable, topic: "greeting" });
          if (!reliable) await sender.page.waitForTimeout(50);
        }
        const { args } = await receiver.event("dataReceived", text);
        assert.equal(args[1], sender.identity);
        assert.equal(args[3], "greeting");
      }
    }),
  );
}

check("a text stream and a file arrive whole", () =>
  pair(async (alice, bob) => {
    const text = "Grüße, how are you? ".repeat(3000);
    await alice.inPage((text) => window.participant.room.localParticipant.sendText(text, { topic: "lk.chat", attributes: { lang: "de" } }), text);
    const got = await bob.until("the text", () => window.participant.texts[0]);
    assert.equal(got.text, text);
    assert.deepEqual([got.from, got.attributes.lang], ["alice", "de"]);
    await bob.call("sendFile", "recording.bin", 100_000);
    const file = await alice.until("the file", () => window.participant.files[0]);
    const sum = Uint8Array.from({ length: 100_000 }, (_, i) => (i * 7) % 256).reduce((a, b) => a + b, 0);
    assert.deepEqual(file, { from: "bob", name: "recording.bin", size: 100_000, sum });
  }),
);

check("RPC is answered", () =>
  pair(async (alice, bob) => {
    await bob.inPage(() =>
      window.participant.room.registerRpcMethod("add", async (call) => String(JSON.parse(call.payload).reduce((a, b) => a + b))),
    );
    const sum = await alice.inPage(() =>
      window.participant.room.localParticipant.performRpc({ destinationIdentity: "bob", method: "add", payload: "[1, 2, 39]" }),
    );
    assert.equal(sum, "42");
  }),
);

check("attributes and metadata reach the other", () =>
  pair(async (alice, bob) => {
    await alice.inPage(async () => {
      await window.participant.room.localParticipant.setAttributes({ "lk.agent.state": "thinking" });
      await window.participant.room.localParticipant.setMetadata("about me");
    });
    await bob.until("both", () => {
      const { attributes, metadata } = window.participant.remote("alice");
      return attributes["lk.agent.state"] === "thinking" && metadata === "about me";
    });
  }),
);

check("a deleted room sends everybody out with that reason", () =>
  pair(async (alice, bob, room) => {
    await support.serverCall(server.url, "RoomService", "DeleteRoom", { room }, { roomCreate: true });
    const roomDeleted = await alice.inPage(() => window.LivekitClient.DisconnectReason.ROOM_DELETED);
    for (const tab of [alice, bob]) assert.equal((await tab.event("disconnected")).args[0], roomDeleted);
  }),
);

for (const [name, scenario] of [["the loss of the signal connection", "signal-reconnect"], ["a full reconnect", "full-reconnect"]]) {
  check(`audio and data survive ${name}`, () =>
    pair(async (alice, bob) => {
      await alice.call("hum", 440);
      await bob.hearsTone("alice", 440);
      await bob.inPage((scenario) => window.participant.room.simulateScenario(scenario), scenario);
      await bob.event("reconnected", null, RECONNECT_DEADLINE_MS);
      await bob.hearsTone("alice", 440);
      await alice.sees("bob");
      await alice.call("sendData", "after", { reliable: true });
      await bob.event("dataReceived", "after");
    }),
  );
}

check("a wrong token is refused", async () => {
  const tab = await Tab.open("mallory", "nowhere");
  try {
    const spoiled = support.token("mallory", { roomJoin: true, room: "nowhere" }).slice(0, -3) + "abc";
    await assert.rejects(tab.call("join", server.url, spoiled), /token|auth|signature|verification|validat|40[13]/i);
  } finally {
    await tab.page.close();
  }
});

check("a person in the browser talks with the agent, and the CRM hears of it", async () => {
  const room = `browser-${randomBytes(6).toString("hex")}`;
  const agentName = `browser-${randomBytes(4).toString("hex")}`;
  const stops = [];
  try {
    const crm = await support.crm();
    stops.push(crm.stop);
    const worker = await support.worker(scratch.path, server.url, crm.url, agentName);
    stops.push(worker.stop);
    const line = join(support.REPOSITORY, "tests/fixtures/audio/hello.wav");
    const speaking = await support.browser({ microphone: support.amidSilence(line, scratch.path) });
    stops.push(() => speaking.close());
    const person = await Tab.open("person", room, speaking);
    await person.join();
    const dispatch = { agentName, room, metadata: JSON.stringify({ dialed_number: "+15550100166" }) };
    await support.serverCall(server.url, "AgentDispatchService", "CreateDispatch", dispatch, { roomAdmin: true, room });
    const agent = await person.until("the agent", () => window.participant.remotes()[0]);
    assert.equal((await person.sees(agent)).isAgent, true);

    await person.hears(agent, 0.01);
    const state = ([who, state]) => window.participant.remote(who)?.attributes["lk.agent.state"] === state;
    await person.until("the agent to listen", state, [agent, "listening"], CONVERSATION_DEADLINE_MS);
    await person.call("openMicrophone");
    const said = ([who, words]) => window.participant.texts.some((t) => t.from === who && t.text.includes(words));
    await person.until("its own words as text", said, ["person", "what your plans cost"], CONVERSATION_DEADLINE_MS);
    await person.hears(agent, 0.01);
    await person.until("the agent's words as text", said, [agent, "The small plan costs"], CONVERSATION_DEADLINE_MS);

    // And in writing: the prepared conversation says goodbye to this and hangs up.
    await person.inPage(() => window.participant.room.localParticipant.sendText("No thank you, goodbye.", { topic: "lk.chat" }));
    await person.event("disconnected", null, CONVERSATION_DEADLINE_MS);
    const end = Date.now() + DEADLINE_MS;
    while (!crm.kept.calls.length && Date.now() < end) await new Promise((done) => setTimeout(done, 50));
    const [call] = crm.kept.calls;
    assert.ok(call, `the CRM got no call; the worker's log ends: ${support.tail(join(scratch.path, "worker.log"))}`);
    assert.equal(call.caller.phoneNumber, "+15550100166");
    const words = call.transcription.conversation_items.map((item) => `${item.role}: ${item.content}`).join("\n");
    assert.match(words, /user: .*what your plans cost/);
    assert.match(words, /user: No thank you, goodbye/);
    assert.equal(crm.kept.recordings, 1);
  } finally {
    for (const stop of stops.reverse()) await stop();
  }
});

try {
  process.exitCode = await support.runChecks(checks, process.argv[2]);
} finally {
  await chromium.close();
  await web.stop();
  await server.stop();
  scratch.remove();
}
