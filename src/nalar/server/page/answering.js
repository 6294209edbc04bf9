// One answer from the first request to the last chunk: a message that grows, with its times.

import { ApiError, streamChat } from "./api.js";

/** A message that waits for its first chunk. */
export function blankAnswer(model) {
  return { role: "assistant", model, reasoning: null, content: "", calls: [], state: "waiting", usage: null, finish: null, error: null, thoughtMs: null, totalMs: null };
}

/** Settings and messages as the server wants them. Empty fields are left out: the server's defaults hold. */
export function requestOf(nodes, settings) {
  const messages = nodes.flatMap(wireMessages);
  if (settings.system.trim()) messages.unshift({ role: "system", content: settings.system });
  const body = { model: settings.model, messages, stream: true, stream_options: { include_usage: true } };
  const numbers = { temperature: settings.temperature, top_p: settings.topP, max_tokens: settings.maxTokens, seed: settings.seed };
  for (const [name, text] of Object.entries(numbers)) {
    if (String(text).trim() !== "") body[name] = Number(text);
  }
  if (settings.thinking !== "default") body.thinking = { type: settings.thinking === "on" ? "enabled" : "disabled" };
  if (settings.thinking !== "off" && String(settings.budget).trim() !== "") body.thinking_token_budget = Number(settings.budget);
  const tools = toolsOf(settings.tools);
  if (tools?.length) body.tools = tools;
  return body;
}

/** The list in the text; null where it is none. */
export function toolsOf(text) {
  if (!text.trim()) return [];
  try {
    const tools = JSON.parse(text);
    return Array.isArray(tools) ? tools.map((tool) => (tool.function ? tool : { type: "function", function: tool })) : null;
  } catch {
    return null;
  }
}

function wireMessages(node) {
  if (node.role !== "assistant") {
    const { role, content, tool_call_id, name } = node;
    return [{ role, content, ...(tool_call_id && { tool_call_id, name }) }];
  }
  if (!node.content && !node.calls.length && !node.reasoning) return []; // it failed before it said anything
  const message = { role: "assistant", content: node.content };
  if (node.reasoning !== null) message.reasoning_content = node.reasoning; // an empty one too: a call may stand in it
  if (!node.calls.length) return [message];
  message.tool_calls = node.calls.map(({ id, name, arguments: text }) => ({ id, type: "function", function: { name, arguments: text } }));
  const outputs = node.calls.filter((call) => call.output !== undefined);
  return [message, ...outputs.map((call) => ({ role: "tool", tool_call_id: call.id, name: call.name, content: call.output }))];
}

/** Streams into `answer`, telling `changed` after each chunk. Never throws: what went wrong is answer.error. */
export async function stream(answer, body, { signal, changed }) {
  const begun = performance.now();
  let thoughtBegun = null;
  try {
    for await (const chunk of streamChat(body, signal)) {
      if (chunk.usage) answer.usage = chunk.usage;
      const choice = chunk.choices?.[0];
      if (choice) {
        const delta = choice.delta ?? {};
        const thought = delta.reasoning_content ?? delta.reasoning ?? null;
        if (thought !== null) answer.reasoning = (answer.reasoning ?? "") + thought;
        if (thought) {
          thoughtBegun ??= performance.now();
          answer.state = "thinking";
        }
        if (delta.content || delta.tool_calls) {
          if (thoughtBegun !== null) answer.thoughtMs ??= performance.now() - thoughtBegun;
          answer.content += delta.content ?? "";
          addCalls(answer.calls, delta.tool_calls ?? []);
          answer.state = "answering";
        }
        if (choice.finish_reason) answer.finish = choice.finish_reason;
      }
      changed();
    }
    answer.state = "done";
  } catch (error) {
    answer.state = "done";
    if (error.name === "AbortError") answer.finish = "stopped";
    else answer.error = describe(error);
  }
  if (thoughtBegun !== null) answer.thoughtMs ??= performance.now() - thoughtBegun;
  answer.totalMs = performance.now() - begun;
}

function describe(error) {
  const known = error instanceof ApiError ? error : new ApiError(502, { message: String(error.message) });
  return { status: known.status, code: known.code, message: known.message, retryAfterS: known.retryAfterS };
}

function addCalls(calls, deltas) {
  for (const delta of deltas) {
    const at = delta.index ?? calls.length;
    calls[at] ??= { id: delta.id ?? `call_${at}`, name: "", arguments: "" };
    if (delta.id) calls[at].id = delta.id;
    calls[at].name += delta.function?.name ?? "";
    calls[at].arguments += delta.function?.arguments ?? "";
  }
}
