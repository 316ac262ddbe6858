// Runs inside the browser: one participant, driven from run.js through `window.participant`.
// Uses the official livekit-client as any web page would; sound is judged by the browser's own Web Audio.

const { Room, RoomEvent, Track, LocalAudioTrack } = window.LivekitClient;

const FFT_SIZE = 8192;

class Participant {
  constructor() {
    this.room = new Room();
    this.audio = new AudioContext({ sampleRate: 48000 });
    this.log = [];
    this.analysers = new Map();
    this.texts = [];
    this.files = [];
    for (const name of Object.values(RoomEvent)) {
      this.room.on(name, (...args) => this.note(name, args));
    }
    this.room.registerTextStreamHandler("lk.chat", async (reader, from) => {
      this.texts.push({ from: from.identity, attributes: reader.info.attributes, text: await reader.readAll() });
    });
    this.room.registerTextStreamHandler("lk.transcription", async (reader, from) => {
      const text = await reader.readAll();
      this.texts.push({ from: from.identity, attributes: reader.info.attributes, text });
    });
    this.room.registerByteStreamHandler("files", async (reader, from) => {
      const chunks = await reader.readAll();
      const bytes = new Uint8Array(await new Blob(chunks).arrayBuffer());
      this.files.push({ from: from.identity, name: reader.info.name, size: bytes.length, sum: bytes.reduce((a, b) => a + b, 0) });
    });
  }

  note(name, args) {
    const plain = args.map((a) =>
      a instanceof Uint8Array ? new TextDecoder().decode(a) : a?.identity ?? a?.trackSid ?? (typeof a === "object" ? null : a),
    );
    this.log.push({ name, args: plain });
    if (name === RoomEvent.TrackSubscribed && args[0].kind === Track.Kind.Audio) this.listen(args[0], args[2].identity);
  }

  listen(track, identity) {
    // Chromium pulls a remote track only while a media element plays it.
    const element = track.attach();
    element.muted = true;
    document.body.append(element);
    const analyser = this.audio.createAnalyser();
    analyser.fftSize = FFT_SIZE;
    analyser.smoothingTimeConstant = 0;
    this.audio.createMediaStreamSource(new MediaStream([track.mediaStreamTrack])).connect(analyser);
    this.analysers.set(identity, analyser);
  }

  // What one hears of somebody at this moment: level (0 to 1) and the strongest frequency.
  hear(identity) {
    const analyser = this.analysers.get(identity);
    if (!analyser) return null;
    const wave = new Float32Array(FFT_SIZE);
    const spectrum = new Float32Array(analyser.frequencyBinCount);
    analyser.getFloatTimeDomainData(wave);
    analyser.getFloatFrequencyData(spectrum);
    const level = Math.sqrt(wave.reduce((sum, x) => sum + x * x, 0) / wave.length);
    const peak = spectrum.indexOf(Math.max(...spectrum));
    return { level, frequencyHz: (peak * this.audio.sampleRate) / FFT_SIZE };
  }

  async join(url, token, options = {}) {
    await this.audio.resume();
    const started = performance.now();
    await this.room.connect(url, token, options);
    return performance.now() - started;
  }

  async openMicrophone() {
    const publication = await this.room.localParticipant.setMicrophoneEnabled(true);
    return publication.trackSid;
  }

  async hum(frequencyHz) {
    const oscillator = this.audio.createOscillator();
    const gain = this.audio.createGain();
    gain.gain.value = 0.3;
    oscillator.frequency.value = frequencyHz;
    const out = this.audio.createMediaStreamDestination();
    oscillator.connect(gain).connect(out);
    oscillator.start();
    const track = new LocalAudioTrack(out.stream.getAudioTracks()[0], undefined, true);
    return (await this.room.localParticipant.publishTrack(track, { source: Track.Source.Microphone })).trackSid;
  }

  sendData(text, options) {
    return this.room.localParticipant.publishData(new TextEncoder().encode(text), options);
  }

  sendFile(name, size) {
    const bytes = Uint8Array.from({ length: size }, (_, i) => (i * 7) % 256);
    return this.room.localParticipant.sendFile(new File([bytes], name), { topic: "files" });
  }

  remote(identity) {
    const found = this.room.remoteParticipants.get(identity);
    return found && { name: found.name, metadata: found.metadata, attributes: found.attributes, kind: found.kind, isAgent: found.isAgent };
  }

  remotes() {
    return [...this.room.remoteParticipants.keys()];
  }
}

window.participant = new Participant();
