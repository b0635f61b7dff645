"use strict";
// The form, the jobs in the making (polled) and the clips of this browser. All text is set as text, never as HTML.

const POLL_MS = 400;
const $ = (id) => document.getElementById(id);
const form = $("form");
let upload = null;

function make(tag, values = {}, ...children) {
  const element = document.createElement(tag);
  Object.assign(element, values);
  element.append(...children);
  return element;
}

async function ask(path, options) {
  const answer = await fetch(path, options);
  const found = await answer.json();
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
    return `${job.label || "Begin"}${count}${time(job.seconds_left)}`;
  }
  return { done: "Done.", cancelled: "Cancelled.", failed: job.sentence }[job.state];
}

function follow(job) {
  const text = make("p", { className: "hint state", textContent: say(job) });
  const bar = make("progress", { max: 1, value: 0, ariaLabel: "Progress" });
  const stop = make("button", { type: "button", className: "quiet cancel", textContent: "Cancel" });
  const card = make("div", { className: "card job" }, make("h2", { textContent: job.prompt }), bar, text, stop);
  $("jobs").append(card);
  stop.onclick = async () => {
    stop.disabled = true;
    text.textContent = "Cancelling ...";
    await send(`/jobs/${job.id}/cancel`, {}).catch((error) => { text.textContent = error.message; });
  };
  const close = () => stop.replaceWith(make("button", {
    type: "button", className: "quiet", textContent: "Close", onclick: () => card.remove() }));
  const poll = async () => {
    let now;
    try {
      now = await ask(`/jobs/${job.id}`);
    } catch (error) {
      if (error instanceof TypeError) { // no answer at all
        text.textContent = "The server does not answer. Trying again ...";
        return setTimeout(poll, 5 * POLL_MS);
      }
      text.textContent = error.message;
      return close();
    }
    if (!stop.disabled || now.state !== "running") text.textContent = say(now);
    if (now.total) bar.value = now.done / now.total;
    else bar.removeAttribute("value");
    card.dataset.state = now.state;
    if (now.state === "queued" || now.state === "running") return setTimeout(poll, POLL_MS);
    bar.remove();
    if (now.state !== "done") return close();
    card.remove();
    return showClips();
  };
  poll();
}

function player(name, label) {
  return make("audio", { controls: true, preload: "none", src: `/file/${name}`, ariaLabel: label });
}

function neighbours(near) {
  if (near === null) return [make("p", { className: "hint", textContent: "No training set here to compare it with." })];
  const rows = near.map((n) => make("li", {},
    make("span", { textContent: `${n.similarity.toFixed(3)}  ${n.title || n.track}${n.artist ? `, ${n.artist}` : ""} at ${n.start_seconds} s` }),
    player(n.file, `Training clip ${n.title || n.track}`)));
  return [make("h3", { textContent: "Nearest in the training set (similarity, 1 is the same)" }), make("ol", {}, ...rows)];
}

function clip({ row, near }) {
  const picture = make("img", { src: `/file/${row.id}.png`, loading: "lazy", width: 990, height: 484,
    alt: "Waveform and spectrogram of the clip" });
  const begun = "strength" in row ? `, begun from a sound at strength ${row.strength}` : "";
  const about = `${row.seconds} s, ${row.steps} steps ${row.sampler}, guidance ${row.guidance}, seed ${row.seed}, ` +
    `CLAP ${row.clap_score.toFixed(3)}${row.negative ? `, not like “${row.negative}”` : ""}${begun}`;
  return make("article", { className: "card clip", id: `clip-${row.id}` },
    make("h2", { textContent: row.prompt }), player(row.file, `Clip: ${row.prompt}`), picture,
    make("p", { className: "hint", textContent: about }),
    make("p", {}, make("a", { href: `/file/${row.file}`, download: row.file, textContent: "Download the clip" }), " · ",
      make("a", { href: `/line/${row.id}`, download: `${row.id}.jsonl`, textContent: "its manifest line" })),
    ...neighbours(near));
}

async function showClips() {
  const { clips } = await ask("/history");
  $("empty").hidden = clips.length > 0;
  const old = new Set([...$("clips").children].map((c) => c.id));
  const fresh = clips.filter(({ row }) => !old.has(`clip-${row.id}`));
  $("clips").prepend(...fresh.map(clip));
}

async function take(file) {
  upload = null;
  $("how").hidden = true;
  if (!file) { $("dropped").textContent = ""; return; }
  if (file.size > Number(form.dataset.bytes)) { $("dropped").textContent = "That file is too large."; return; }
  $("dropped").textContent = `Reading ${file.name} ...`;
  try {
    const found = await ask("/upload", { method: "POST", headers: { "content-type": "application/octet-stream" }, body: file });
    upload = found.upload;
    $("how").hidden = false;
    $("dropped").textContent = `${file.name}, ${found.seconds} s. Choose another file to replace it.`;
  } catch (error) {
    $("dropped").textContent = error.message;
  }
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const given = Object.fromEntries(new FormData(form));
  for (const key of ["seconds", "steps", "guidance", "seed", "candidates", "strength"]) given[key] = Number(given[key]);
  $("error").textContent = "";
  try {
    follow(await send("/jobs", { ...given, upload }));
  } catch (error) {
    $("error").textContent = error.message;
  }
});
$("strength").addEventListener("input", () => { $("strength-value").value = $("strength").value; });
$("file").addEventListener("change", () => take($("file").files[0]));
$("drop").addEventListener("dragover", (event) => event.preventDefault());
$("drop").addEventListener("drop", (event) => { event.preventDefault(); take(event.dataTransfer.files[0]); });
// one player at a time
document.addEventListener("play", (event) => {
  document.querySelectorAll("audio").forEach((other) => other !== event.target && other.pause());
}, true);
showClips();
ask("/jobs").then(({ jobs }) => jobs.forEach(follow));
