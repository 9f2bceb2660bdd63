"use strict";
(() => {
  const find = (id) => document.getElementById(id);
  const button = find("print");
  button.hidden = false;
  button.addEventListener("click", () => window.print());
  const table = find("rows");
  if (!table) return;

  const body = table.tBodies[0];
  const order = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });
  const number = (text) => (text === undefined || text === "" ? null : Number(text));
  const rows = [...body.rows].map((row) => ({
    row,
    name: row.dataset.name,
    text: row.dataset.name.toLowerCase(),
    score: Number(row.dataset.score),
    kind: row.dataset.kind,
    truth: row.dataset.truth,
    wrong: row.dataset.result === "wrong",
    p: number(row.dataset.p),
    area: number(row.dataset.area),
  }));
  let sorted = rows;

  // Sorting

  const heads = [...table.tHead.querySelectorAll("th[data-key]")];
  const compare = (a, b) => (typeof a === "number" ? a - b : order.compare(a, b));
  const sort = (head, direction) => {
    const key = head.dataset.key;
    const sign = direction === "ascending" ? 1 : -1;
    sorted = [...rows].sort((one, other) => {
      const [a, b] = [one[key], other[key]];
      if (a === null || b === null) return (a === null) - (b === null); // empty cells come last
      return sign * compare(a, b) || other.score - one.score || order.compare(one.name, other.name);
    });
    for (const each of heads) each.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", direction);
    body.append(...sorted.map((one) => one.row));
  };
  for (const head of heads) {
    const made = document.createElement("button");
    made.type = "button";
    made.textContent = head.textContent;
    head.replaceChildren(made);
    made.addEventListener("click", () => {
      const first = ["score", "area"].includes(head.dataset.key) ? "descending" : "ascending";
      const other = first === "ascending" ? "descending" : "ascending";
      sort(head, head.getAttribute("aria-sort") === first ? other : first);
    });
  }

  // Filters

  const form = find("filters");
  const [search, label, least, most] = ["search", "label", "least", "most"].map(find);
  const filter = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const low = least.value === "" ? -Infinity : Number(least.value);
    const high = most.value === "" ? Infinity : Number(most.value);
    let count = 0;
    for (const one of rows) {
      const fits = words.every((word) => one.text.includes(word))
        && (label.value === "" || (label.value === "wrong" ? one.wrong : one.kind === label.value))
        && one.score >= low && one.score <= high;
      one.row.hidden = !fits;
      count += fits;
    }
    find("found").textContent = `${count} of ${rows.length} photos`;
  };
  form.hidden = false;
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(filter)); // after the fields are empty
  filter();

  // Large pictures

  const dialog = find("large");
  let current = null;
  const visible = () => sorted.filter((one) => !one.row.hidden && one.row.querySelector(".zoom"));
  const show = (one) => {
    current = one;
    find("large-name").textContent = one.name;
    find("large-text").textContent = `score ${one.score.toFixed(3)}, ${one.row.querySelector(".label").textContent}`;
    const pictures = [...one.row.querySelectorAll(".zoom img")].map((picture) => {
      const copy = document.createElement("img");
      copy.src = picture.src;
      copy.alt = picture.alt;
      return copy;
    });
    find("large-pictures").replaceChildren(...pictures);
    const list = visible();
    find("previous").disabled = list[0] === one;
    find("next").disabled = list[list.length - 1] === one;
    if (!dialog.open) dialog.showModal();
  };
  const move = (step) => {
    const list = visible();
    const next = list[list.indexOf(current) + step];
    if (next) show(next);
  };
  body.addEventListener("click", (event) => {
    const zoom = event.target.closest(".zoom");
    if (zoom) show(rows.find((one) => one.row === zoom.closest("tr")));
  });
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowRight") move(1);
    if (event.key === "ArrowLeft") move(-1);
  });
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close(); // beside the pictures
  });
  dialog.addEventListener("close", () => current && current.row.querySelector(".zoom").focus());
  find("previous").addEventListener("click", () => move(-1));
  find("next").addEventListener("click", () => move(1));
  find("close").addEventListener("click", () => dialog.close());
})();
