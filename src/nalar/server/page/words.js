// What the pages say, in English and Indonesian, and how they write numbers.

const WORDS = {
  en: {
    newChat: "New chat",
    chats: "Conversations",
    noChats: "Your conversations stay in this browser.",
    runs: "Training runs",
    chat: "Chat",
    askHere: "Ask anything",
    message: "Message",
    send: "Send",
    stop: "Stop",
    settings: "Settings",
    close: "Close",
    menu: "Conversations",
    theme: "Light or dark",
    language: "Bahasa Indonesia",
    model: "Model",
    noModel: "No model",
    thinking: "Thinking",
    thinkingDefault: "Default",
    thinkingOn: "On",
    thinkingOff: "Off",
    budget: "Thinking budget",
    budgetHint: "tokens; empty: no limit",
    temperature: "Temperature",
    topP: "Top p",
    maxTokens: "Longest answer",
    maxTokensHint: "tokens; empty: what fits",
    seed: "Seed",
    seedHint: "empty: another each time",
    emptyDefault: "empty: the model's own",
    system: "System prompt",
    systemHint: "What the model is told before the conversation",
    tools: "Tools",
    toolsHint: "A JSON list of functions in OpenAI's form. You answer the calls.",
    badTools: "This is not a JSON list.",
    apiKey: "API key",
    apiKeyHint: "Kept until this tab is closed.",
    keyWanted: "This server asks for a key.",
    keyWrong: "The server does not know this key.",
    keyAdmin: "This page asks for the server's admin key.",
    noAdmin: "The server shows this with an admin key alone, and was started without one.",
    useKey: "Use this key",
    greeting: "What shall we think about?",
    greetingHint: "The model shows its thoughts before it answers. You can open them, limit them, or switch them off.",
    try1: "Solve 3x + 7 = 22 and show the steps",
    try2: "Is 1009 a prime number?",
    try3: "Explain why √2 is irrational",
    thinkingNow: "Thinking",
    thoughtFor: "Thought for {time}",
    thought: "Thought",
    tokens: "{n} tokens",
    token: "{n} token",
    you: "You",
    answerOf: "Answer",
    copy: "Copy",
    copied: "Copied",
    retry: "Try again",
    edit: "Edit",
    save: "Send",
    cancel: "Cancel",
    delete: "Delete",
    deleteAsk: "Delete this conversation?",
    earlier: "Earlier version",
    later: "Later version",
    version: "{i} of {n}",
    jump: "To the latest",
    input: "in",
    cachedInput: "{n} cached",
    output: "out",
    cost: "Cost",
    usageLabel: "Tokens and cost of this answer",
    speed: "{n} tokens/s",
    stopped: "Stopped.",
    cutOff: "The answer reached its limit of tokens.",
    cutThought: "The thought reached the limit of tokens before an answer came.",
    filtered: "The server's policy withheld this answer.",
    called: "Called",
    arguments: "Arguments",
    toolOutput: "Output",
    toolAnswer: "What the tool returns",
    sendOutput: "Send the output",
    errorOffline: "The server cannot be reached.",
    errorLoading: "The model is still loading.",
    errorLoadingRetry: "The model is still loading. Next try in {n} s.",
    errorBusy: "The server has too much to do, or this key asked too often.",
    errorBusyRetry: "Too many requests. You can try again in {n} s.",
    errorBudget: "The budget of this key is used up for this month.",
    errorLong: "The conversation is longer than the model can read. Begin a new one, or shorten your message.",
    errorModel: "The server does not have this model.",
    errorServer: "The server met an error.",
    errorBroken: "The connection ended before the answer did.",
    errorStorage: "The browser's storage is full: this conversation is not kept. Delete old ones.",
    statusThinking: "The model is thinking",
    statusAnswering: "The model is answering",
    statusDone: "The answer is complete",
    keys: "Enter sends, Shift+Enter makes a new line, Esc stops, / goes to the message, ↑ edits the last message",
    seconds: "{n} s",
    minutes: "{m} min {s} s",
    hours: "{h} h {m} min",
    noRuns: "No runs yet",
    noRunsHint: "The server shows the runs below its runs folder. Begin one with: nalar demo",
    unreadable: "Cannot be read: {names}",
    running: "running",
    finished: "finished",
    stoppedState: "stopped",
    waitingState: "not begun",
    begun: "begun",
    recipe: "recipe",
    wholeRun: "Whole run",
    stage: "Stage",
    stages: "Stages",
    reward: "Reward",
    accuracy: "Accuracy",
    length: "Response length",
    loss: "Loss",
    heldOut: "Held-out",
    entropy: "Entropy",
    costPlot: "Cost",
    passAt1: "Pass at 1",
    rate: "Speed",
    overSteps: "steps",
    noPlots: "Nothing to plot yet. Plots appear as soon as a step is logged.",
    samples: "Samples, before and after",
    before: "Before",
    after: "After",
    onlyChanged: "Only what changed",
    allTasks: "All tasks",
    noSamples: "There are samples once a model has been measured.",
    nothingHere: "nothing",
    right: "right",
    wrong: "wrong",
    receipt: "Receipt",
    time: "Time",
    energy: "Energy",
    flops: "FLOPs",
    tokensHead: "Tokens",
    total: "Total",
    showMore: "Show more",
  },
  id: {
    newChat: "Obrolan baru",
    chats: "Percakapan",
    noChats: "Percakapan Anda tersimpan di peramban ini.",
    runs: "Pelatihan",
    chat: "Obrolan",
    askHere: "Tanyakan apa saja",
    message: "Pesan",
    send: "Kirim",
    stop: "Hentikan",
    settings: "Pengaturan",
    close: "Tutup",
    menu: "Percakapan",
    theme: "Terang atau gelap",
    language: "English",
    model: "Model",
    noModel: "Tidak ada model",
    thinking: "Berpikir",
    thinkingDefault: "Bawaan",
    thinkingOn: "Nyala",
    thinkingOff: "Mati",
    budget: "Batas berpikir",
    budgetHint: "token; kosong: tanpa batas",
    temperature: "Suhu",
    topP: "Top p",
    maxTokens: "Jawaban terpanjang",
    maxTokensHint: "token; kosong: sebanyak yang muat",
    seed: "Benih acak",
    seedHint: "kosong: berbeda setiap kali",
    emptyDefault: "kosong: bawaan model",
    system: "Perintah sistem",
    systemHint: "Yang disampaikan kepada model sebelum percakapan",
    tools: "Alat",
    toolsHint: "Daftar fungsi JSON dalam bentuk OpenAI. Anda yang menjawab panggilannya.",
    badTools: "Ini bukan daftar JSON.",
    apiKey: "Kunci API",
    apiKeyHint: "Disimpan sampai tab ini ditutup.",
    keyWanted: "Server ini meminta kunci.",
    keyWrong: "Server tidak mengenal kunci ini.",
    keyAdmin: "Halaman ini meminta kunci admin server.",
    noAdmin: "Server hanya menampilkan ini dengan kunci admin, dan dijalankan tanpa kunci itu.",
    useKey: "Pakai kunci ini",
    greeting: "Apa yang ingin kita pikirkan?",
    greetingHint: "Model menunjukkan pikirannya sebelum menjawab. Anda dapat membukanya, membatasinya, atau mematikannya.",
    try1: "Selesaikan 3x + 7 = 22 beserta langkahnya",
    try2: "Apakah 1009 bilangan prima?",
    try3: "Jelaskan mengapa √2 irasional",
    thinkingNow: "Berpikir",
    thoughtFor: "Berpikir selama {time}",
    thought: "Pikiran",
    tokens: "{n} token",
    token: "{n} token",
    you: "Anda",
    answerOf: "Jawaban",
    copy: "Salin",
    copied: "Tersalin",
    retry: "Coba lagi",
    edit: "Ubah",
    save: "Kirim",
    cancel: "Batal",
    delete: "Hapus",
    deleteAsk: "Hapus percakapan ini?",
    earlier: "Versi sebelumnya",
    later: "Versi berikutnya",
    version: "{i} dari {n}",
    jump: "Ke yang terbaru",
    input: "masuk",
    cachedInput: "{n} dari tembolok",
    output: "keluar",
    cost: "Biaya",
    usageLabel: "Token dan biaya jawaban ini",
    speed: "{n} token/dtk",
    stopped: "Dihentikan.",
    cutOff: "Jawaban mencapai batas token.",
    cutThought: "Pikiran mencapai batas token sebelum ada jawaban.",
    filtered: "Kebijakan server menahan jawaban ini.",
    called: "Memanggil",
    arguments: "Argumen",
    toolOutput: "Hasil",
    toolAnswer: "Yang dikembalikan alat",
    sendOutput: "Kirim hasil",
    errorOffline: "Server tidak dapat dihubungi.",
    errorLoading: "Model masih dimuat.",
    errorLoadingRetry: "Model masih dimuat. Mencoba lagi dalam {n} d.",
    errorBusy: "Server terlalu sibuk, atau kunci ini terlalu sering meminta.",
    errorBusyRetry: "Terlalu banyak permintaan. Anda dapat mencoba lagi dalam {n} d.",
    errorBudget: "Anggaran kunci ini untuk bulan ini sudah habis.",
    errorLong: "Percakapan lebih panjang daripada yang dapat dibaca model. Mulailah yang baru, atau persingkat pesan Anda.",
    errorModel: "Server tidak memiliki model ini.",
    errorServer: "Server mengalami kesalahan.",
    errorBroken: "Sambungan terputus sebelum jawaban selesai.",
    errorStorage: "Penyimpanan peramban penuh: percakapan ini tidak tersimpan. Hapus yang lama.",
    statusThinking: "Model sedang berpikir",
    statusAnswering: "Model sedang menjawab",
    statusDone: "Jawaban selesai",
    keys: "Enter mengirim, Shift+Enter membuat baris baru, Esc menghentikan, / menuju pesan, ↑ mengubah pesan terakhir",
    seconds: "{n} dtk",
    minutes: "{m} mnt {s} dtk",
    hours: "{h} jam {m} mnt",
    noRuns: "Belum ada pelatihan",
    noRunsHint: "Server menampilkan pelatihan di bawah folder runs. Mulailah dengan: nalar demo",
    unreadable: "Tidak dapat dibaca: {names}",
    running: "berjalan",
    finished: "selesai",
    stoppedState: "berhenti",
    waitingState: "belum mulai",
    begun: "mulai",
    recipe: "resep",
    wholeRun: "Seluruhnya",
    stage: "Tahap",
    stages: "Tahap",
    reward: "Ganjaran",
    accuracy: "Ketepatan",
    length: "Panjang jawaban",
    loss: "Loss",
    heldOut: "Soal uji",
    entropy: "Entropi",
    costPlot: "Biaya",
    passAt1: "Pass at 1",
    rate: "Kecepatan",
    overSteps: "langkah",
    noPlots: "Belum ada grafik. Grafik muncul begitu satu langkah tercatat.",
    samples: "Contoh, sebelum dan sesudah",
    before: "Sebelum",
    after: "Sesudah",
    onlyChanged: "Hanya yang berubah",
    allTasks: "Semua tugas",
    noSamples: "Contoh muncul setelah sebuah model diukur.",
    nothingHere: "kosong",
    right: "benar",
    wrong: "salah",
    receipt: "Nota",
    time: "Waktu",
    energy: "Energi",
    flops: "FLOP",
    tokensHead: "Token",
    total: "Jumlah",
    showMore: "Tampilkan lagi",
  },
};

const KEY = "nalar.language";

function initial() {
  try {
    const kept = localStorage.getItem(KEY);
    if (kept in WORDS) return kept;
  } catch {
    // storage is switched off
  }
  // "in" is how old systems spell Indonesian
  return /^(id|in)\b/i.test(navigator.language) ? "id" : "en";
}

let language = initial();

/** The words for a key, with `{name}` filled in. */
export function t(key, values = {}) {
  const text = WORDS[language][key] ?? WORDS.en[key] ?? key;
  return text.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}

/** Fills every element that names a key: `data-t` its text, `data-t-label`, `-title`, `-placeholder` an attribute. */
export function translate(root = document) {
  document.documentElement.lang = language;
  for (const element of root.querySelectorAll("[data-t]")) element.textContent = t(element.dataset.t);
  for (const element of root.querySelectorAll("[data-t-label]")) {
    element.setAttribute("aria-label", t(element.dataset.tLabel));
    if (element.matches("button, a")) element.title = t(element.dataset.tLabel);
  }
  for (const element of root.querySelectorAll("[data-t-placeholder]")) {
    element.placeholder = t(element.dataset.tPlaceholder);
  }
}

/** The other language, remembered; whoever listens for `nalar:language` draws again. */
export function switchLanguage() {
  language = language === "en" ? "id" : "en";
  try {
    localStorage.setItem(KEY, language);
  } catch {
    // it holds for this visit
  }
  translate();
  document.dispatchEvent(new Event("nalar:language"));
}

/** 12,345 or 12.345. */
export function number(value, digits = 0, least = 0) {
  return new Intl.NumberFormat(language, { minimumFractionDigits: least, maximumFractionDigits: digits }).format(value);
}

/** Three significant digits, as axes and hover values have them. */
export function short(value) {
  if (value === null || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-4 || size >= 1e9)) return value.toExponential(2);
  if (size >= 10000) {
    return new Intl.NumberFormat(language, { notation: "compact", maximumSignificantDigits: 3 }).format(value);
  }
  return new Intl.NumberFormat(language, { maximumSignificantDigits: size >= 100 ? 4 : 3 }).format(value);
}

/** US dollars; small prices keep two digits that say something. */
export function money(usd) {
  const digits = usd === 0 || usd >= 0.1 ? 2 : Math.min(10, 1 - Math.floor(Math.log10(Math.abs(usd))));
  return `$${new Intl.NumberFormat(language, { minimumFractionDigits: Math.min(digits, 2), maximumFractionDigits: digits }).format(usd)}`;
}

/** 3.2 s, 2 min 5 s, 3 h 12 min. */
export function duration(seconds) {
  if (seconds < 9.95) return t("seconds", { n: number(seconds, 1, 1) });
  if (seconds < 59.5) return t("seconds", { n: number(seconds) });
  const whole = Math.round(seconds);
  if (whole < 3600) return t("minutes", { m: Math.floor(whole / 60), s: whole % 60 });
  return t("hours", { h: number(Math.floor(whole / 3600)), m: Math.floor((whole % 3600) / 60) });
}

export function countTokens(n) {
  return t(n === 1 ? "token" : "tokens", { n: number(n) });
}
