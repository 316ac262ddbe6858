// Requests to the worker.

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function request(path, options = {}) {
  let response;
  try {
    response = await fetch(`api/${path}`, { credentials: "same-origin", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "The worker does not answer.");
  }
  if (response.status === 401 && path !== "sign-in") document.dispatchEvent(new Event("sign-in-needed"));
  if (!response.ok) {
    const answer = await response.json().catch(() => ({}));
    throw new Refused(response.status, answer.error ?? `The worker answered ${response.status}.`);
  }
  return response;
}

export async function get(path, signal) {
  return (await request(path, { signal })).json();
}

export async function post(path, body) {
  const options = { method: "POST" };
  if (body) Object.assign(options, { body: JSON.stringify(body), headers: { "content-type": "application/json" } });
  const response = await request(path, options);
  return response.status === 204 ? null : response.json();
}

export const recordingPath = (id) => `api/calls/${encodeURIComponent(id)}/recording`;

/** The recording as a whole, and how large it is. Larger than `most` bytes: not fetched. */
export async function recording(id, most, signal) {
  const path = `calls/${encodeURIComponent(id)}/recording`;
  const head = await request(path, { signal, method: "HEAD" }).catch(async (error) => {
    // The answer to HEAD has no words; that to GET does.
    if (error.status) await request(path, { signal });
    throw error;
  });
  const size = Number(head.headers.get("content-length") ?? 0);
  if (size > most) return { size, blob: null };
  return { size, blob: await (await request(path, { signal })).blob() };
}
