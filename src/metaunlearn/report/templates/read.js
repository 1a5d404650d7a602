
// Under the pointer, or on a focused chart by the arrow keys, each chart says its figures at the nearest step.
const tip = document.createElement("div");
tip.className = "tip";
tip.hidden = true;
tip.setAttribute("aria-hidden", "true"); // The slider's value says the same.
document.body.append(tip);

const line = (tag, text, kind = "") => {
  const part = document.createElement(tag);
  part.className = kind;
  part.textContent = text;
  return part;
};

for (const chart of document.querySelectorAll("[data-reading]")) {
  const { plot, last, steps } = JSON.parse(chart.dataset.reading);
  const [left, top, width, height] = plot;
  const rule = line("i", "", "rule");
  rule.hidden = true;
  rule.style.top = `${100 * top}%`;
  rule.style.height = `${100 * height}%`;
  chart.append(rule);
  let place = steps.length - 1;

  const words = (step) =>
    step.rows.map(([, title, figure, interval, by]) => {
      const more = [interval && `95 % interval ${interval}`, by].filter(Boolean).join(", ");
      return `${title} ${figure}${more ? ` (${more})` : ""}`;
    });
  const settle = () => {
    chart.setAttribute("aria-valuenow", String(steps[place].at));
    chart.setAttribute("aria-valuetext", `step ${steps[place].at}: ${words(steps[place]).join("; ")}`);
  };
  const show = () => {
    settle();
    const step = steps[place];
    rule.style.left = `${100 * (left + (width * step.at) / last)}%`;
    tip.replaceChildren(line("b", `step ${step.at}`));
    for (const [model, title, figure, interval, by] of step.rows) {
      const row = line("p", "", model);
      row.append(line("span", title), line("b", figure));
      if (interval) row.append(line("small", interval));
      if (by) row.append(line("small", by));
      tip.append(row);
    }
    rule.hidden = tip.hidden = false;
    const box = chart.getBoundingClientRect();
    const at = box.left + box.width * (left + (width * step.at) / last);
    const room = document.documentElement.clientWidth - tip.offsetWidth - 8;
    const beside = at + 12 > room ? at - tip.offsetWidth - 12 : at + 12;
    tip.style.left = `${scrollX + Math.max(8, Math.min(beside, room))}px`;
    tip.style.top = `${scrollY + Math.max(8, box.top + box.height * top - tip.offsetHeight / 2)}px`;
  };
  const hide = () => {
    rule.hidden = tip.hidden = true;
  };
  const nearest = (event) => {
    const box = chart.getBoundingClientRect();
    const step = (((event.clientX - box.left) / box.width - left) / width) * last;
    const off = steps.map(({ at }) => Math.abs(at - step));
    place = off.indexOf(Math.min(...off));
    show();
  };
  const keys = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, Home: -steps.length, End: steps.length };

  chart.tabIndex = 0;
  chart.setAttribute("role", "slider");
  chart.setAttribute("aria-valuemin", "0");
  chart.setAttribute("aria-valuemax", String(last));
  settle();
  chart.addEventListener("pointermove", nearest);
  chart.addEventListener("pointerdown", nearest);
  chart.addEventListener("pointerleave", hide);
  chart.addEventListener("focus", () => chart.matches(":focus-visible") && show());
  chart.addEventListener("blur", hide);
  chart.addEventListener("keydown", (event) => {
    if (event.key === "Escape") hide();
    if (!(event.key in keys)) return;
    event.preventDefault();
    place = Math.max(0, Math.min(steps.length - 1, place + keys[event.key]));
    show();
  });
}
