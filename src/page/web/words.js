// How things are called, and times and lengths in words.

const known = (words) => (name) => words[name] ?? (name ?? "").replaceAll("_", " ");

export const outcome = known({ completed: "Completed", no_answer: "No answer", busy: "Busy", failed: "Failed", voicemail: "Voicemail", recovered: "Recovered" });
export const standing = known({ running: "Live", interrupted: "Interrupted", waiting: "Waiting", failed: "Refused", archived: "Delivered" });
export const stage = known({ joining: "Joining", waiting_for_caller: "Waiting for the caller", ringing: "Ringing", talking: "Talking", ending: "Ending", interrupted: "Interrupted" });
export const part = known({ recording: "Recording", call_data: "Call data", call_data_update: "Call data, once more" });
export const partState = known({ pending: "To be sent", waiting: "Waiting for the file", sent: "Delivered", missing: "None", failed: "Refused" });
export const attempt = known({ accepted: "accepted", duplicate: "the CRM had it already", try_again: "not taken", refused: "refused" });
export const breaker = known({ closed: "takes requests", half_open: "being tried again", open: "takes nothing" });
export const closeReason = known({
  participant_disconnected: "the other party left", job_shutdown: "the job was ended", task_completed: "the agent hung up",
  user_initiated: "an operator ended it", error: "something broke",
});

export const outcomeKind = (name) => ({ completed: "good", failed: "bad", recovered: "odd", no_answer: "", busy: "", voicemail: "" })[name] ?? "";
export const standingKind = (name) => ({ running: "live", interrupted: "bad", waiting: "odd", failed: "bad", archived: "good" })[name] ?? "";
export const partKind = (name) => ({ sent: "good", failed: "bad", pending: "odd", waiting: "odd" })[name] ?? "";

const day = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short", year: "numeric" });
const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
const clockSeconds = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });

/** Day and time as this machine has them. */
export function when(text) {
  if (!text) return "unknown";
  const at = new Date(text);
  const name = at.toDateString() === new Date().toDateString() ? "Today" : day.format(at);
  return `${name}, ${clock.format(at)}`;
}

export const timeOfDay = (text) => (text ? clockSeconds.format(new Date(text)) : "");

/** Seconds as 0:07, 12:34 or 1:02:03. */
export function length(seconds) {
  if (seconds === null || seconds === undefined || Number.isNaN(seconds)) return "–";
  const whole = Math.max(0, Math.floor(seconds));
  const [hours, minutes, rest] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const two = (number) => String(number).padStart(2, "0");
  return hours ? `${hours}:${two(minutes)}:${two(rest)}` : `${minutes}:${two(rest)}`;
}

export function milliseconds(ms) {
  return ms >= 1000 ? `${(ms / 1000).toFixed(2)} s` : `${Math.round(ms)} ms`;
}

export function bytes(number) {
  if (number === null || number === undefined) return "unknown";
  const units = ["bytes", "kB", "MB", "GB", "TB"];
  let unit = 0;
  let amount = number;
  while (amount >= 1000 && unit < units.length - 1) [amount, unit] = [amount / 1000, unit + 1];
  return `${amount >= 100 || unit === 0 ? Math.round(amount) : amount.toFixed(1)} ${units[unit]}`;
}

/** How long from now, or ago. */
export function fromNow(text, now = Date.now()) {
  const seconds = (new Date(text).getTime() - now) / 1000;
  const amount = Math.abs(seconds);
  const words = amount < 90 ? `${Math.round(amount)} s` : amount < 5400 ? `${Math.round(amount / 60)} min` : amount < 129600 ? `${Math.round(amount / 3600)} h` : `${Math.round(amount / 86400)} days`;
  return seconds > 0 ? `in ${words}` : `${words} ago`;
}

export const party = (call) => call.number || "No number";
export const direction = (name) => ({ inbound: "called us", outbound: "was called" })[name] ?? "";
export const arrow = (name) => ({ inbound: "↙", outbound: "↗" })[name] ?? "·";

/** What happened, from an entry of the timeline: a title and a sentence. */
export function happened(entry) {
  const list = (...parts) => parts.filter(Boolean).join(", ");
  switch (entry.event) {
    case "dispatched": return ["Dispatched", list(entry.job_id && `job ${entry.job_id}`, entry.room && `room ${entry.room}`)];
    case "joined": return ["Agent joined", entry.room_sid && `room ${entry.room_sid}`];
    case "answered": return ["Answered", list(entry.number && `by ${entry.number}`, entry.trunk_number && `on ${entry.trunk_number}`, entry.persona && `persona ${entry.persona}`)];
    case "recording_started": return ["Recording started", list({ egress: "by LiveKit Egress", local: "by the call", external: "by somebody else" }[entry.source], entry.egress_id)];
    case "said": return [entry.role === "assistant" ? "Agent" : "Caller", entry.content, entry.role];
    case "intent": return ["Intent", entry.intent];
    case "tool_used": return [`Tool ${entry.name}`, list(milliseconds(entry.duration_ms), entry.is_error && "not done", entry.result)];
    case "lead": return ["Lead taken", list(entry.lead?.name, entry.lead?.company)];
    case "hung_up": return ["Hung up", list(outcome(entry.call_status), entry.close_reason && closeReason(entry.close_reason), entry.disconnect_reason, entry.error)];
    case "recording": return ["Recording", list(known({})(entry.state), entry.error)];
    case "record_written": return ["Record written", entry.file];
    case "request": return [`Sent to the CRM: ${part(entry.part).toLowerCase()}`, list(attempt(entry.outcome), milliseconds(entry.took_ms), entry.error)];
    case "tried": return [`Tried: ${part(entry.part).toLowerCase()}`, list(`${entry.attempts} requests`, entry.error)];
    case "next_attempt": return ["Next attempt", list(part(entry.part).toLowerCase(), entry.error)];
    case "without_recording": return ["Without recording", entry.error ?? "the call was not recorded"];
    case "recording_delivered": return ["Recording delivered", entry.url ?? "the CRM did not say where to"];
    case "crm_answer": return ["The CRM answered", JSON.stringify(entry.response)];
    case "refused": return ["The CRM refused", entry.error ?? ""];
    case "delivered": return ["Delivered", "the CRM has confirmed everything"];
    case "archived": return ["Archived", entry.file];
    default: return [known({})(entry.event), ""];
  }
}
