// What pages can do better where scripts run. Everything works without.
"use strict";

// Times in the person's own time zone.
const inZone = new Intl.DateTimeFormat("en-GB", {
  day: "numeric", month: "short", year: "numeric", hour: "2-digit", minute: "2-digit",
});
function localize(root) {
  for (const time of root.querySelectorAll("time[datetime]")) {
    const at = new Date(time.dateTime);
    if (!time.title && !Number.isNaN(at.getTime())) {
      time.title = time.textContent;
      time.textContent = inZone.format(at);
    }
  }
}
localize(document);

// Copying.
for (const button of document.querySelectorAll("button[data-copy]")) {
  if (!navigator.clipboard) continue;
  const name = button.textContent;
  button.hidden = false;
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(button.dataset.copy);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Select it and copy it";
    }
    setTimeout(() => { button.textContent = name; }, 2000);
  });
}

// What changes is brought up to date while the page is visible. If nothing answers, the pauses grow.
const SHORTEST = 5000, LONGEST = 60000, LIMIT = 10000;
// What a screen reader says when it changes.
const said = (region) => region.querySelector("[data-announce]")?.textContent ?? "";
function follow(region) {
  let pause = SHORTEST;
  async function update() {
    if (document.hidden || region.contains(document.activeElement)) return true;
    const response = await fetch(region.dataset.live, {
      headers: { "x-live": "1", "if-none-match": region.dataset.tag },
      redirect: "manual", cache: "no-store", signal: AbortSignal.timeout(LIMIT),
    });
    if (response.status === 401 || response.type === "opaqueredirect") {
      location.reload(); // to the form for signing in
      return false;
    }
    if (response.status === 200) {
      const before = said(region);
      const fresh = new DOMParser().parseFromString(await response.text(), "text/html");
      region.replaceChildren(...fresh.body.childNodes);
      region.dataset.tag = response.headers.get("etag");
      localize(region);
      if (said(region) !== before) document.getElementById("announcement").textContent = said(region);
    }
    return response.ok || response.status === 304;
  }
  async function next() {
    let fine = false;
    try {
      fine = await update();
    } catch {
      // The network or the service is away for a while.
    }
    pause = fine ? SHORTEST : Math.min(pause * 2, LONGEST);
    setTimeout(next, pause);
  }
  setTimeout(next, pause);
}
for (const region of document.querySelectorAll("[data-live]")) follow(region);

// Shortcuts. They never get in the way of typing.
const PLACES = new Map([["l", "/links"], ["a", "/attention"], ["b", "/books"]]);
const keys = document.querySelector(".keys");
if (keys) {
  keys.hidden = false;
  let wentBefore = false;
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest("input, textarea, select, [contenteditable]");
    if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    const search = document.querySelector("[data-search]");
    const went = wentBefore;
    wentBefore = event.key === "g";
    if (event.key === "/") {
      event.preventDefault();
      if (search) search.focus();
      else location.assign("/links#q");
    } else if (went && PLACES.has(event.key)) {
      location.assign(PLACES.get(event.key));
    }
  });
  if (location.hash === "#q") document.querySelector("[data-search]")?.focus();
}
