"use strict";
// Tables sort by the data-value of their cells: numbers first, then text, missing values last.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.querySelectorAll("thead th")];
  const body = table.tBodies[0];
  const compare = (one, two, sign) => {
    if (one === "" || two === "") return (one === "") - (two === "");
    const [a, b] = [Number(one), Number(two)];
    if (Number.isNaN(a) || Number.isNaN(b)) return sign * one.localeCompare(two);
    return sign * (a - b);
  };
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      heads.forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
      const value = (row) => row.cells[column].dataset.value;
      const rows = [...body.rows].sort((one, two) => compare(value(one), value(two), sign));
      body.append(...rows);
    });
  });
}
// Paper cannot be clicked: what is folded away is opened for printing.
window.addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});
