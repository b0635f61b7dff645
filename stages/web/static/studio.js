"use strict";
// The form, the jobs in the making (polled) and the clips of this browser. All text is set as text, never as HTML.
// Progress changes too often to be read out: what a screen reader is to say goes through `announce`.

const POLL_MS = 400;
const AWAY_MS = 2000;
const ANNOUNCE_MS = 20_000;
const SEEDS = 2 ** 32;
const NUMBERS = ["seconds", "steps", "guidance", "seed", "candidates", "strength"];
const $ = (id) => document.getElementById(id);
const form = $("form");
let upload = null;
let reading = Promise.resolve();

function make(tag, values = {}, ...children) {
  const element = document.createElement(tag);
  Object.assign(element, values);
  element.append(...children);
  return element;
}

function announce(text) {
  $("news").textContent = text;
}

async function ask(path, options) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw Object.assign(new Error("The server does not answer."), { away: true });
  }
  const found = await answer.json().catch(() => ({ ok: false, sentence: "The server made a mistake; its log says more." }));
  if (!found.ok) throw new Error(found.sentence);
  return found;
}

const send = (path, data) =>
  ask(path, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(data) });

function time(seconds) {
  if (seconds === null) return "";
  const whole = Math.ceil(seconds);
  return whole < 60 ? `, ${whole} s left` : `, ${Math.floor(whole / 60)} min ${whole % 60} s left`;
}

function say(job) {
  if (job.state === "queued") return job.ahead ? `Waiting; ${job.ahead} before this one.` : "Waiting.";
  if (job.state === "running") {
    const count = job.total ? ` ${job.done} of ${job.total}` : "";
    return `${job.label}${count}${time(job.seconds_left)}`;
  }
  return { done: `Done. ${job.sentence}`.trim(), cancelled: "Cancelled.", failed: job.sentence }[job.state];
}

// A job's card while it is waiting or made, and what became of it
function jobCard(job) {
  const text = make("p", { className: "hint state" });
  const bar = make("progress", { max: 1, ariaLabel: `Progress of ${job.prompt}` });
  const stop = make("button", { type: "button", className: "quiet cancel", textContent: "Cancel" });
  const card = make("div", { className: "card job" }, make("h3", { textContent: job.prompt }), bar, text, stop);
  let told = "";
  let toldAt = 0;
  $("jobs").append(card);
  stop.onclick = async () => {
    if (stop.ariaDisabled) return;
    stop.ariaDisabled = "true"; // not `disabled`, which would lose the keyboard's place
    text.textContent = "Cancelling ...";
    await send(`/jobs/${job.id}/cancel`, {}).catch((error) => { text.textContent = error.message; });
  };
  return {
    show(now) {
      const words = say(now);
      if (!stop.ariaDisabled || now.state !== "running") text.textContent = words;
      if (now.total) bar.value = now.done / now.total;
      else bar.removeAttribute("value");
      card.dataset.state = now.state;
      const kind = `${now.state} ${now.state === "running" ? now.label : words}`;
      if (kind === told && (now.state !== "running" || Date.now() - toldAt < ANNOUNCE_MS)) return;
      [told, toldAt] = [kind, Date.now()];
      announce(`${job.prompt}: ${words}`);
    },
    say(words) { text.textContent = words; },
    close() { // leaves what became of it to be read
      bar.remove();
      stop.ariaDisabled = null;
      stop.textContent = "Close";
      stop.onclick = () => { card.remove(); $("yours").focus(); };
    },
    remove() {
      if (card.contains(document.activeElement)) $("yours").focus();
      card.remove();
    },
  };
}

function follow(job) {
  const card = jobCard(job);
  card.show(job);
  const poll = async () => {
    let now;
    try {
      now = await ask(`/jobs/${job.id}`);
    } catch (error) {
      card.say(error.away ? "The server does not answer. Trying again ..." : error.message);
      return error.away ? setTimeout(poll, AWAY_MS) : card.close();
    }
    card.show(now);
    if (now.state === "queued" || now.state === "running") return setTimeout(poll, POLL_MS);
    if (now.state === "done") await showClips();
    if (now.state === "done" && !now.sentence) card.remove();
    else card.close();
  };
  setTimeout(poll, POLL_MS);
}

const decimal = (number) => number.toFixed(3).replace(/^-(0\.0+)$/, "$1");

function player(name, label) {
  return make("audio", { controls: true, preload: "none", src: `/file/${name}`, ariaLabel: label });
}

function neighbours(near, isLong) {
  if (near === null) return [make("p", { className: "hint", textContent: "Not compared with the training music." })];
  const rows = near.map((n) => {
    const name = n.artist ? `${n.title || n.track}, ${n.artist}` : n.title || n.track;
    const own = isLong ? `; like this clip from ${n.clip_start_seconds} s` : "";
    return make("li", {}, make("span", { textContent: `${decimal(n.similarity)}  ${name}, from ${n.start_seconds} s${own}` }),
      player(n.file, `Training clip: ${name}`));
  });
  return [make("h4", { textContent: "Nearest in the training music" }),
    make("p", { className: "hint", textContent: "Similarity, then the piece. 1 is the same: listen whether this clip is a copy." }),
    make("ol", {}, ...rows)];
}

function picture(row) {
  const image = make("img", { src: `/file/${row.id}.png`, loading: "lazy", width: 990, height: 484,
    alt: "Waveform and spectrogram of the clip, in full size" });
  const link = make("a", { className: "picture", href: image.src, target: "_blank" }, image);
  image.onerror = () => link.remove();
  return link;
}

function reuse(row, model) {
  for (const key of ["prompt", "seconds", "steps", "sampler", "guidance", "seed", "candidates"]) $(key).value = row[key];
  $("negative").value = row.negative || "";
  if (model) $("model").value = model;
  $("prompt").focus();
}

function clip({ row, model, near }) {
  const begun = "strength" in row ? `, begun from a sound at strength ${row.strength}` : "";
  const about = `${row.seconds} s, model ${model || "no longer here"}, ${row.steps} steps ${row.sampler}, ` +
    `guidance ${row.guidance}, seed ${row.seed}, match with the prompt (CLAP) ${decimal(row.clap_score)}` +
    `${row.negative ? `, not like “${row.negative}”` : ""}${begun}`;
  const isLong = near !== null && near.some((n) => n.clip_start_seconds > 0);
  return make("article", { className: "card clip", id: `clip-${row.id}` },
    make("h3", { textContent: row.prompt }), player(row.file, `Clip: ${row.prompt}`), picture(row),
    make("p", { className: "hint", textContent: about }),
    make("p", { className: "actions" },
      make("a", { href: `/file/${row.file}`, download: row.file, textContent: "Download the clip" }),
      make("a", { href: `/line/${row.id}`, download: `${row.id}.jsonl`, textContent: "Download its manifest line" }),
      make("button", { type: "button", className: "quiet", textContent: "Use these settings", onclick: () => reuse(row, model) })),
    ...neighbours(near, isLong));
}

async function showClips() {
  const { clips } = await ask("/history");
  $("empty").hidden = clips.length > 0;
  const old = new Set([...$("clips").children].map((c) => c.id));
  const fresh = clips.filter(({ row }) => !old.has(`clip-${row.id}`));
  $("clips").prepend(...fresh.map(clip));
}

function withoutSound(words = "") {
  upload = null;
  $("how").hidden = true;
  $("dropped").textContent = words;
}

async function take(file) {
  withoutSound();
  if (!file) return;
  if (file.size > Number(form.dataset.bytes)) return withoutSound(`${file.name} is too large.`);
  $("dropped").textContent = `Reading ${file.name} ...`;
  try {
    const found = await ask("/upload", { method: "POST", headers: { "content-type": "application/octet-stream" }, body: file });
    upload = found.upload;
    $("how").hidden = false;
    $("dropped").textContent = `${file.name}, ${found.seconds} s, will be the beginning.`;
  } catch (error) {
    withoutSound(`${file.name} is not used. ${error.message}`);
    $("file").value = "";
  }
}

const takeNext = (file) => { reading = reading.then(() => take(file)); };

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const given = Object.fromEntries(new FormData(form));
  for (const key of NUMBERS) given[key] = Number(given[key]);
  $("error").textContent = "";
  await reading; // a file that is on its way is meant
  try {
    follow(await send("/jobs", { ...given, upload }));
    if ($("reseed").checked) $("seed").value = Math.floor(Math.random() * SEEDS);
  } catch (error) {
    $("error").textContent = error.message;
  }
});
$("strength").addEventListener("input", () => { $("strength-value").value = $("strength").value; });
$("file").addEventListener("change", () => takeNext($("file").files[0]));
$("without").addEventListener("click", () => {
  $("file").value = "";
  withoutSound("The sound was removed.");
  $("file").focus();
});
// a file dropped beside the box must not replace the page
for (const kind of ["dragover", "drop"]) document.addEventListener(kind, (event) => event.preventDefault());
$("drop").addEventListener("drop", (event) => {
  $("file").value = "";
  takeNext(event.dataTransfer.files[0]);
});
// one player at a time
document.addEventListener("play", (event) => {
  document.querySelectorAll("audio").forEach((other) => other !== event.target && other.pause());
}, true);
Promise.all([showClips(), ask("/jobs").then(({ jobs }) => jobs.forEach(follow))])
  .catch((error) => { $("error").textContent = error.message; });
