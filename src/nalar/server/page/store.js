// Conversations, kept in this browser. A conversation is a tree of messages: an edit or a retry is a sibling, so nothing
// is lost; `head` is the last message of the branch that is shown.

const INDEX = "nalar.chats";
const CHAT = "nalar.chat.";
const SETTINGS = "nalar.settings";
const TITLE_CHARS = 60;

const DEFAULTS = {
  thinking: "default",
  budget: "",
  temperature: "",
  topP: "",
  maxTokens: "",
  seed: "",
  system: "",
  tools: "",
  model: "",
};

function read(key, fallback) {
  try {
    return JSON.parse(localStorage.getItem(key)) ?? fallback;
  } catch {
    return fallback; // storage is switched off, or holds what this page did not write
  }
}

/** Whether it was kept: storage may be full or switched off. */
function write(key, value) {
  try {
    localStorage.setItem(key, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

export const readSettings = () => ({ ...DEFAULTS, ...read(SETTINGS, {}) });
export const writeSettings = (settings) => write(SETTINGS, settings);

/** {id, title, updated}, the latest first. */
export function listChats() {
  const chats = read(INDEX, []);
  return Array.isArray(chats) ? chats.filter((chat) => typeof chat?.id === "string") : [];
}

export function newChat() {
  return { id: newId(), title: "", nodes: {}, head: null, updated: Date.now() };
}

export function openChat(id) {
  const chat = read(CHAT + id, null);
  return chat?.nodes ? chat : null;
}

export function saveChat(chat) {
  chat.updated = Date.now();
  const { id, title, updated } = chat;
  const others = listChats().filter((other) => other.id !== id);
  return write(CHAT + id, chat) && write(INDEX, [{ id, title, updated }, ...others]);
}

export function deleteChat(id) {
  write(INDEX, listChats().filter((chat) => chat.id !== id));
  try {
    localStorage.removeItem(CHAT + id);
  } catch {
    // nothing was kept
  }
}

/** Adds a message behind `parent` and shows its branch. */
export function addNode(chat, parent, message) {
  const node = { id: newId(), parent, ...message };
  chat.nodes[node.id] = node;
  chat.head = node.id;
  if (!chat.title && message.role === "user") chat.title = titleOf(message.content);
  return node;
}

/** The messages from the first to the head. */
export function branch(chat) {
  const nodes = [];
  for (let id = chat.head; id && chat.nodes[id]; id = chat.nodes[id].parent) nodes.unshift(chat.nodes[id]);
  return nodes;
}

/** All versions of a message, the oldest first. */
export function versions(chat, node) {
  return Object.values(chat.nodes).filter((other) => other.parent === node.parent && other.role === node.role);
}

/** Shows the branch through this message, down to its latest end. */
export function showVersion(chat, node) {
  let last = node;
  for (let next = last; next; ) {
    last = next;
    next = Object.values(chat.nodes).findLast((other) => other.parent === last.id);
  }
  chat.head = last.id;
}

function titleOf(text) {
  const line = text.trim().split("\n", 1)[0];
  return line.length > TITLE_CHARS ? `${line.slice(0, TITLE_CHARS).trimEnd()}…` : line;
}

function newId() {
  return [...crypto.getRandomValues(new Uint8Array(9))].map((b) => b.toString(36).padStart(2, "0")).join("");
}
