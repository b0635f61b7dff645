"use strict";
// One clip plays at a time, without seeking; its ratings open when it was heard to the end. Every rating is sent at
// once, in order, and again until the server has acknowledged it.

const RETRY_MS = 1500;
const left = document.getElementById("left");
const button = document.querySelector("#next button");
const sections = [...document.querySelectorAll("section.clip")];
let sending = Promise.resolve();
let waiting = 0;

const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

async function post(path, data) {
  for (;;) {
    try {
      const answer = await fetch(path, {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify(data),
      });
      const found = await answer.json();
      if (answer.status < 500) return found;
    } catch { /* the server is away: below */ }
    left.textContent = "Not saved yet, the server does not answer. Trying again ...";
    await sleep(RETRY_MS);
  }
}

function send(path, data, section) {
  waiting += 1;
  sending = sending.then(async () => {
    const found = await post(path, data);
    waiting -= 1;
    count();
    if (!found.ok) section.querySelector(".state").textContent = found.sentence;
    return found.ok;
  });
  return sending;
}

const rated = (fieldset) => !fieldset.disabled && fieldset.querySelector(":checked") !== null;

function count() {
  const open = sections.flatMap((s) => [...s.querySelectorAll("fieldset")]);
  const missing = open.filter((f) => !rated(f)).length;
  button.disabled = missing > 0 || waiting > 0;
  left.textContent = missing ? `${missing} rating${missing === 1 ? "" : "s"} to go in this group.` : waiting ? "Saving ..." : "All is saved.";
}

function setUp(section) {
  const audio = new Audio();
  const play = section.querySelector(".play");
  const bar = section.querySelector("progress");
  const state = section.querySelector(".state");
  const name = section.querySelector("h2").textContent;
  const own = name.toLowerCase();
  let heard = "heard" in section.dataset;
  section.audio = audio;
  audio.preload = "none";
  audio.src = `/clip/${section.dataset.at}`;
  const say = (text) => { if (state.textContent !== text) state.textContent = text; };
  const label = (text) => { play.textContent = text; };
  const after = () => say([...section.querySelectorAll("fieldset")].every(rated)
    ? `${name} is rated. Until the group is finished you can change it.` : `${name} was heard; please rate it.`);
  const broken = () => {
    label(`Play ${own}`);
    audio.load(); // after the server was away, a fresh start
    say(`${name} cannot be played now. Press Play again in a moment.`);
  };

  play.addEventListener("click", async () => {
    if (!audio.paused) return audio.pause();
    sections.forEach((other) => other !== section && other.audio.pause());
    try {
      await audio.play();
    } catch (error) {
      if (error.name !== "AbortError") broken();
    }
  });
  audio.addEventListener("error", broken); // also in the middle, where play() has long succeeded
  audio.addEventListener("play", () => label(`Pause ${own}`));
  audio.addEventListener("pause", () => label(audio.ended ? `Play ${own} again` : `Play ${own}`));
  audio.addEventListener("timeupdate", () => { if (audio.duration) bar.value = audio.currentTime / audio.duration; });
  audio.addEventListener("ended", async () => {
    bar.value = 1;
    label(`Play ${own} again`);
    if (heard || !(await send(`/heard/${section.dataset.at}`, {}, section))) return;
    heard = true;
    section.querySelectorAll("fieldset").forEach((f) => { f.disabled = false; });
    after();
    count();
  });
  section.addEventListener("change", (event) => {
    const { scale } = event.target.dataset;
    send(`/rate/${section.dataset.at}`, { scale, value: Number(event.target.value) }, section);
    after();
    count();
  });
  if (heard) after();
  else say("Ratings open when the clip was heard to its end.");
}

sections.forEach(setUp);
count();
