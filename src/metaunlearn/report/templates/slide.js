
// Above each wall of pictures: two of its states laid over each other, the cut between them moved by a slider.
for (const wall of document.querySelectorAll(".grid")) {
  const place = (part, name) => Number(part.style.getPropertyValue(name));
  const strips = [...wall.querySelectorAll("h4")].map((head) => ({
    model: head.className.split(" ")[0],
    state: [...head.querySelectorAll("span")].map((part) => part.textContent).join(", "),
    title: [...head.children].map((part) => part.textContent).join(", "),
    shots: new Map(
      [...wall.querySelectorAll(".shot")]
        .filter((shot) => place(shot, "--strip") === place(head, "--strip"))
        .map((shot) => [place(shot, "--shot"), shot]),
    ),
  }));
  if (strips.length < 2) continue;

  // At first the plain and the meta-unlearned model after the same attack, else a model before and after one.
  const metas = strips.filter(({ model }) => model === "meta-unlearn");
  const same = (one) => strips.findIndex(({ model, state }) => model === "unlearn" && state === one.state);
  const attacked = metas.filter((one) => one.state !== "before" && same(one) >= 0);
  const right = attacked.length ? strips.indexOf(attacked[0]) : strips.length - 1;
  const left = attacked.length ? same(attacked[0]) : strips.findIndex(({ model }) => model === strips[right].model);
  const chosen = [left === right ? 0 : left, right];
  // Sensitive pictures that were asked for here, by place: whichever states are chosen, no others are shown.
  const asked = new Set();

  const make = (tag, kind, more = {}) => Object.assign(document.createElement(tag), { className: kind }, more);
  const whole = make("div", "compare");
  whole.setAttribute("role", "group");
  whole.setAttribute("aria-label", `${wall.dataset.title}: two states over each other`);
  const layers = make("div", "layers");
  const range = make("input", "cut", { type: "range", min: 0, max: 100, value: 50 });
  range.setAttribute("aria-label", "Where the right state begins");

  const cut = (value) => {
    range.value = value;
    whole.style.setProperty("--cut", `${range.value}%`);
    range.setAttribute("aria-valuetext", `${range.value} % ${strips[chosen[0]].title}, the rest ${strips[chosen[1]].title}`);
  };
  const picture = (shot, kind) => {
    const image = shot.querySelector("img").cloneNode();
    image.classList.add(kind);
    return image;
  };
  const reveal = (veil, shot) => {
    const copy = Object.assign(veil.querySelector("input").cloneNode(), { checked: asked.has(shot) });
    copy.addEventListener("change", () => (copy.checked ? asked.add(shot) : asked.delete(shot)));
    return copy;
  };
  const lay = () => {
    const [one, other] = chosen.map((index) => strips[index].shots);
    const pairs = [...one].filter(([shot]) => other.has(shot)).map(([shot, first]) => [shot, [first, other.get(shot)]]);
    layers.style.setProperty("--shots", pairs.length);
    layers.replaceChildren(
      ...pairs.map(([shot, pair]) => {
        const hidden = pair.map((one) => one.querySelector(".veil")).find(Boolean);
        const layer = make("div", hidden ? "layer veil" : "layer");
        if (hidden) layer.append(reveal(hidden, shot));
        layer.append(picture(pair[0], "under"), picture(pair[1], "over"), make("i", "edge"));
        if (hidden) layer.append(hidden.querySelector("span").cloneNode(true));
        return layer;
      }),
    );
    cut(range.value);
  };
  const choice = (side, name) => {
    const label = make("label", "choice", { textContent: name });
    const select = make("select", "");
    strips.forEach(({ title }, index) => select.append(new Option(title, index)));
    select.value = chosen[side];
    select.addEventListener("change", () => {
      chosen[side] = Number(select.value);
      lay();
    });
    label.append(select);
    return label;
  };

  const choices = make("div", "choices");
  choices.append(choice(0, "Left "), choice(1, "Right "));
  range.addEventListener("input", () => cut(range.value));
  const drag = (event) => {
    const box = event.target.closest(".layer")?.getBoundingClientRect();
    if (box && event.buttons) cut(Math.round((100 * (event.clientX - box.left)) / box.width));
  };
  layers.addEventListener("pointerdown", drag);
  layers.addEventListener("pointermove", drag);
  layers.addEventListener("dragstart", (event) => event.preventDefault());
  lay();
  whole.append(choices, layers, range);
  wall.parentElement.insertBefore(whole, wall);
}
