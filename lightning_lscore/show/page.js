// One validation at a time, in all pictures and the table: by pointer, by finger, by arrow keys.
const strips = [...document.querySelectorAll(".at")], rows = [...document.querySelectorAll("tr[data-i]")];
const last = Math.max(-1, ...strips.map(s => +s.dataset.i));
let at = null;
function show(i) {
  at = i;
  for (const s of [...strips, ...rows]) s.classList.toggle("on", i !== null && +s.dataset.i === i);
  for (const figure of document.querySelectorAll("figure")) {
    const strip = i === null ? null : figure.querySelector(`.at[data-i="${i}"] title`);
    figure.querySelector("figcaption").textContent = strip ? strip.textContent : "";
  }
}
for (const s of [...strips, ...rows]) s.addEventListener("pointerenter", () => show(+s.dataset.i));
for (const svg of document.querySelectorAll("figure svg")) {
  svg.addEventListener("pointerleave", () => show(null));
  svg.addEventListener("keydown", event => {
    const to = { ArrowRight: (at ?? -1) + 1, ArrowLeft: (at ?? last + 1) - 1, Home: 0, End: last, Escape: null };
    if (!(event.key in to)) return;
    event.preventDefault();
    show(to[event.key] === null ? null : Math.min(last, Math.max(0, to[event.key])));
  });
}
