// Asking the server: models, streamed answers, Markdown. Errors are of one class, which knows what to tell the reader.

import { t } from "./words.js";

// The runs page wants the admin's key, which is no key to the model: each page keeps its own.
const KEY = location.pathname.startsWith("/runs") ? "nalar.admin-key" : "nalar.key";

export function readKey() {
  try {
    return sessionStorage.getItem(KEY) ?? "";
  } catch {
    return "";
  }
}

export function keepKey(key) {
  try {
    sessionStorage.setItem(KEY, key);
  } catch {
    // without storage the next call fails with 401 again, which says so
  }
}

/** What went wrong. status 0: no answer came. retryAfterS: when the server wants to be asked again; null: unsaid. */
export class ApiError extends Error {
  constructor(status, { message = "", code = null, retryAfterS = null } = {}) {
    super(message);
    this.status = status;
    this.code = code;
    this.retryAfterS = retryAfterS;
  }

  /** In the reader's language; the server's own words where they say more. */
  words() {
    if (this.status === 0) return t("errorOffline");
    if (this.code === "admin_key_wanted" || this.code === "no_admin") return t(this.status === 401 ? "keyAdmin" : "noAdmin");
    if (this.status === 401) return readKey() ? t("keyWrong") : t("keyWanted");
    if (this.status === 402) return t("errorBudget");
    if (this.code === "context_length_exceeded") return t("errorLong");
    if (this.code === "model_not_found") return t("errorModel");
    if (this.status === 429) return t("errorBusy");
    if (this.code === "engine_unavailable") return t("errorLoading");
    if (this.status >= 500) return `${t("errorServer")} ${this.message}`.trim();
    return this.message || t("errorServer");
  }
}

async function ask(path, { body, signal } = {}) {
  const headers = {};
  if (readKey()) headers.Authorization = `Bearer ${readKey()}`;
  if (body) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, {
      method: body ? "POST" : "GET",
      headers,
      body: body && JSON.stringify(body),
      signal,
      credentials: "omit",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0);
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  const document = await response.json().catch(() => null);
  const wait = Number.parseFloat(response.headers.get("Retry-After"));
  return new ApiError(response.status, {
    message: String(document?.error?.message ?? response.statusText),
    code: document?.error?.code ?? null,
    retryAfterS: Number.isFinite(wait) ? wait : null,
  });
}

export async function getJson(path, signal) {
  return (await ask(path, { signal })).json();
}

/** Names of the models, the server's default first. */
export async function listModels() {
  const document = await getJson("/v1/models");
  return document.data.map((model) => model.id);
}

export async function renderMarkdown(text) {
  return (await (await ask("/page/markdown", { body: { text } })).json()).html;
}

/** The chunks of a streamed answer, each a JSON object; ApiError where the server reports one in the stream. */
export async function* streamChat(body, signal) {
  const response = await ask("/v1/chat/completions", { body, signal });
  let isDone = false;
  for await (const data of events(response.body)) {
    if (data.startsWith("[DONE]")) {
      isDone = true;
      break;
    }
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(chunk.error.status ?? 500, chunk.error);
    yield chunk;
  }
  if (!isDone) throw new ApiError(502, { message: t("errorBroken"), code: "broken_stream" });
}

/** The data of each server-sent event. Comments are left out; an event may be split anywhere. */
async function* events(stream) {
  let rest = "";
  let data = [];
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split(/\r?\n/);
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
        if (line === "" && data.length) {
          yield data.join("\n");
          data = [];
        }
      }
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(502, { message: t("errorBroken"), code: "broken_stream" });
  } finally {
    reader.cancel().catch(() => {});
  }
}
