// The recording: player, waveform of both sides, and the transcript that follows.

import { h, notice, setText, show } from "./dom.js";
import { recording, recordingPath } from "./server.js";
import * as words from "./words.js";

/** Larger recordings are played as they come, without a waveform: decoding them takes too much memory for a phone. */
const MOST_BYTES = 12 * 1024 * 1024;
/** Samples a second that the waveform is made from. */
const RATE_HZ = 8000;
const COLUMNS = 1200;
const SIDES = [["Agent", "--agent"], ["Caller", "--caller"]];

export function soundOf(id, { items, deleted, signal }) {
  const audio = h("audio", { controls: true, preload: "metadata", "aria-label": "Recording of the call" });
  const canvas = h("canvas", { width: COLUMNS, height: 160, "aria-hidden": "true" });
  const wave = h("div", { class: "wave", hidden: true }, canvas, h("ul", { class: "legend", "aria-hidden": "true" }, SIDES.map(([name, color]) => h("li", {}, h("span", { class: `swatch side${color}` }), name))));
  const state = h("p", { class: "muted", role: "status" }, "Loading the recording …");
  const element = h("section", { class: "card" }, h("h2", {}, "Recording"), wave, audio, state);
  audio.hidden = true;
  let address = null;
  let peaks = null;

  function draw() {
    if (!peaks) return;
    const { width, height } = canvas;
    const pen = canvas.getContext("2d");
    const style = getComputedStyle(canvas);
    const played = audio.duration ? (audio.currentTime / audio.duration) * width : 0;
    pen.clearRect(0, 0, width, height);
    const each = height / peaks.length;
    peaks.forEach((side, place) => {
      pen.fillStyle = style.getPropertyValue(SIDES[place][1]);
      const middle = each * place + each / 2;
      side.forEach((peak, x) => {
        const tall = Math.max(1, peak * (each - 6));
        pen.globalAlpha = x < played ? 1 : 0.45;
        if (x % 3 !== 2) pen.fillRect(x, middle - tall / 2, 1, tall);
      });
    });
    pen.globalAlpha = 1;
    pen.fillStyle = style.color;
    pen.fillRect(Math.min(width - 2, played), 0, 2, height);
  }

  function jump(second) {
    audio.currentTime = second;
    audio.play().catch(() => {});
  }

  function follow() {
    draw();
    const now = audio.currentTime + 0.05;
    const current = items.findLast((item) => item.second !== null && item.second <= now);
    for (const item of items) {
      const isCurrent = item === current && (audio.currentTime > 0 || !audio.paused);
      if (isCurrent === item.element.hasAttribute("aria-current")) continue;
      if (!isCurrent) item.element.removeAttribute("aria-current");
      else {
        item.element.setAttribute("aria-current", "true");
        const list = item.element.parentElement;
        if (!audio.paused) list.scrollTo({ top: item.element.offsetTop - list.offsetTop - list.clientHeight / 3, behavior: "smooth" });
      }
    }
  }

  for (const item of items) if (item.second !== null) item.time.addEventListener("click", () => jump(item.second));
  canvas.addEventListener("click", (event) => audio.duration && jump((event.offsetX / canvas.clientWidth) * audio.duration));
  for (const name of ["timeupdate", "seeked", "pause", "play", "loadedmetadata"]) audio.addEventListener(name, follow);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  dark.addEventListener("change", draw);

  async function load() {
    if (deleted) {
      setText(state, "The recording was delivered to the CRM and then deleted here.");
      return;
    }
    const { size, blob } = await recording(id, MOST_BYTES, signal);
    audio.hidden = false;
    if (!blob) {
      audio.src = recordingPath(id);
      setText(state, `${words.bytes(size)}: too large for a waveform.`);
      return;
    }
    address = URL.createObjectURL(blob);
    audio.src = address;
    try {
      peaks = peaksOf(await new OfflineAudioContext(2, 1, RATE_HZ).decodeAudioData(await blob.arrayBuffer()));
      wave.hidden = false;
      setText(state, "");
      draw();
    } catch {
      setText(state, "This browser cannot show the waveform of this file.");
    }
  }
  load().catch((error) => {
    if (error.name !== "AbortError") show(state, notice(error.message, "hint"));
  });
  return {
    element,
    stop() {
      audio.pause();
      audio.removeAttribute("src");
      dark.removeEventListener("change", draw);
      if (address) URL.revokeObjectURL(address);
    },
  };
}

/** The loudest sample of each column, 0 to 1, for one side or both. */
function peaksOf(sound) {
  const sides = Math.min(sound.numberOfChannels, SIDES.length);
  return Array.from({ length: sides }, (_, side) => {
    const samples = sound.getChannelData(side);
    const each = samples.length / COLUMNS;
    const peaks = Array.from({ length: COLUMNS }, (_, column) => {
      let peak = 0;
      for (let place = Math.floor(column * each); place < (column + 1) * each && place < samples.length; place++) peak = Math.max(peak, Math.abs(samples[place]));
      return peak;
    });
    const loudest = Math.max(0.05, ...peaks);
    return peaks.map((peak) => peak / loudest);
  });
}
