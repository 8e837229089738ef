"use strict";
// Adds filters to the slides and to long tables. Without it the page shows everything, and no control that does nothing.
(() => {
  const MIN_ROWS = 10;

  const make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };
  // Without accents and case, so that "Gruber" finds "grüber".
  const plain = (text) => text.normalize("NFKD").replace(/\p{M}/gu, "").toLowerCase();

  // Show the items that hold every word of the search and pass the other conditions; say how many there are.
  const follow = (form, search, items, noun, passes = () => true) => {
    const told = make("output", { role: "status" });
    form.append(told);
    let texts;
    const update = () => {
      texts ??= items.map((item) => plain(item.textContent));
      const words = plain(search.value).split(/\s+/).filter(Boolean);
      let shown = 0;
      items.forEach((item, i) => {
        const stays = words.every((word) => texts[i].includes(word)) && passes(item);
        item.classList.toggle("filtered", !stays);
        shown += stays;
      });
      told.value = shown < items.length ? `${shown} of ${items.length} ${noun}` : "";
    };
    form.addEventListener("input", update);
    form.addEventListener("submit", (event) => event.preventDefault());
  };

  const slides = document.querySelector(".slides");
  if (slides && slides.children.length > 1) {
    const cards = [...slides.children];
    const groups = [...new Set(cards.map((card) => card.dataset.group).filter(Boolean))];
    const search = make("input", { type: "search", autocomplete: "off" });
    const group = make("select", {}, make("option", { value: "", textContent: "all" }));
    groups.forEach((name) => group.append(make("option", { value: name, textContent: name })));
    const flagged = make("input", { type: "checkbox" });
    const form = make("form", { className: "filter", role: "search", ariaLabel: "Slides" });
    form.append(make("label", {}, "Find slides ", search));
    if (groups.length > 1) form.append(make("label", {}, "Group ", group));
    form.append(make("label", {}, flagged, " only with warnings or failures"));
    follow(form, search, cards, "slides", (card) =>
      (!group.value || card.dataset.group === group.value) &&
      (!flagged.checked || card.querySelector(".warn-text, .bad-text") !== null));
    slides.before(form);
  }

  for (const table of document.querySelectorAll(".wide > table")) {
    const rows = [...table.tBodies[0].rows];
    if (rows.length < MIN_ROWS) continue;
    const about = table.caption.textContent;
    const search = make("input", { type: "search", autocomplete: "off", ariaLabel: `Filter rows: ${about}` });
    const form = make("form", { className: "filter" }, make("label", {}, "Filter rows ", search));
    follow(form, search, rows, "rows");
    table.parentElement.before(form);
  }
})();
