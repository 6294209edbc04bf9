// The list of conversations.

import { byId, el, iconButton } from "./dom.js";
import { connectFrame, showSidebar, walkByArrows } from "./frame.js";
import { deleteChat, listChats } from "./store.js";
import { t } from "./words.js";

/** Draws the list. actions: {open(id), removed(id)}. */
export function drawSidebar(openId, actions) {
  const chats = listChats();
  const list = byId("chat-list");
  list.replaceChildren(...chats.map((chat) => row(chat, chat.id === openId, actions)));
  byId("no-chats").hidden = chats.length > 0;
}

function row(chat, isOpen, actions) {
  const open = el("button", { type: "button", class: "chat-link", click: () => actions.open(chat.id), "aria-current": isOpen ? "page" : null }, chat.title || t("newChat"));
  const remove = iconButton("trash", t("delete"), () => askToDelete(chat, actions));
  return el("li", { class: isOpen ? "chat-row open" : "chat-row" }, open, remove);
}

function askToDelete(chat, actions) {
  const dialog = byId("delete-dialog");
  byId("delete-title").textContent = chat.title;
  dialog.returnValue = "";
  dialog.showModal();
  dialog.addEventListener(
    "close",
    () => {
      if (dialog.returnValue !== "delete") return;
      deleteChat(chat.id);
      actions.removed(chat.id);
    },
    { once: true },
  );
}

export function connectSidebar() {
  connectFrame();
  walkByArrows(byId("chat-list"), ".chat-link");
  byId("sidebar").addEventListener("click", (event) => {
    if (event.target.closest(".chat-link, #new-chat")) showSidebar(false);
  });
}
