"use strict";
// Shows the values under the pointer. The page says everything without it.
const data = JSON.parse(document.getElementById("curves").textContent);
const short = (v) => (v === null ? "–" : Number(v.toPrecision(4)).toLocaleString("en"));
for (const figure of document.querySelectorAll("figure[data-y]")) {
  const svg = figure.querySelector("svg.chart");
  const cross = svg.querySelector(".cross");
  if (!cross) continue;
  const [low, high, log, left, right] = cross.dataset.x.split(",").map(Number);
  const { xname: xName, y: yName } = figure.dataset;
  const box = document.createElement("div");
  box.className = "readout";
  box.hidden = true;
  figure.append(box);
  const leave = () => { box.hidden = true; cross.style.visibility = "hidden"; };
  svg.addEventListener("pointerleave", leave);
  svg.addEventListener("pointermove", (event) => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse()).x;
    if (at < left || at > right) { leave(); return; }
    const share = (at - left) / (right - left);
    const x = log ? low * (high / low) ** share : low + (high - low) * share;
    const lines = data.map((form, number) => {
      const xs = form[xName];
      let last = 0;
      while (last + 1 < xs.length && xs[last + 1] <= x) last += 1;
      const line = document.createElement("div");
      const name = document.createElement("span");
      name.className = `form-${number % 8}`;
      name.textContent = form.name;
      const ended = x > xs[xs.length - 1] * 1.0001 ? " (ended)" : "";
      line.append(name, ` ${short(form[yName][last])}${ended}`);
      return line;
    });
    const head = document.createElement("div");
    head.textContent = `${figure.dataset.xlabel} ${short(x)}`;
    box.replaceChildren(head, ...lines);
    box.hidden = false;
    cross.setAttribute("x1", at);
    cross.setAttribute("x2", at);
    cross.style.visibility = "visible";
  });
}
