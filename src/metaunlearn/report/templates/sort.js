
// A click on a column's head sorts by it: ascending, descending, as it was. Cells without a figure stay last.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  const next = { none: "ascending", ascending: "descending", descending: "none" };
  const key = (row, place) => {
    const cell = row.cells[place];
    if ("value" in cell.dataset) return Number(cell.dataset.value);
    const text = cell.textContent.trim();
    return text.startsWith("–") ? "" : text; // The dash may have a note behind it.
  };
  const compare = (a, b) => {
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b), "en", { numeric: true });
  };
  heads.forEach((head, place) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const order = next[head.getAttribute("aria-sort")];
      for (const other of heads) other.setAttribute("aria-sort", other === head ? order : "none");
      const sign = order === "descending" ? -1 : 1;
      const sorted = [...rows];
      if (order !== "none") {
        sorted.sort((left, right) => {
          const [a, b] = [key(left, place), key(right, place)];
          if (a === "" || b === "") return (a === "") - (b === "");
          return sign * compare(a, b);
        });
      }
      body.append(...sorted);
    });
  });
}
